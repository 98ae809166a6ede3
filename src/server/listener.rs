//! The accept loop: a bound on connections, time for headers, graceful shutdown.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::{App, handle};

/// Longest request line and headers.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Time for idle and answering connections to close once all work is done.
const CLOSING: Duration = Duration::from_secs(2);

/// One open connection.
struct Counted(Arc<App>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) async fn serve(
    app: Arc<App>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) {
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => accept(&app, stream, peer),
            Err(error) => {
                // Mostly out of descriptors: others must close first.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let limit = app.settings.shutdown_timeout;
    tracing::info!(seconds = limit.as_secs_f64(), "draining");
    app.closing.send_replace(true);
    if let Some(tasks) = app.tasks.get() {
        tasks.drain(limit).await;
    }
    let deadline = Instant::now() + CLOSING;
    while app.connections.load(Ordering::Relaxed) > 0 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tracing::info!(
        open_connections = app.connections.load(Ordering::Relaxed),
        "stopped"
    );
}

fn accept(app: &Arc<App>, mut stream: TcpStream, peer: SocketAddr) {
    let counted = Counted(Arc::clone(app));
    if app.connections.fetch_add(1, Ordering::Relaxed) >= app.settings.max_connections {
        tokio::spawn(async move {
            let _ = tokio::time::timeout(CLOSING, refuse(&mut stream)).await;
            drop(counted);
        });
        return;
    }
    // Small answers must not wait for a full segment; a failure here costs latency only.
    let _ = stream.set_nodelay(true);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(app.settings.header_timeout)
        .max_header_size(MAX_HEAD_BYTES)
        .half_close(false);
    let service_app = Arc::clone(app);
    let service =
        service_fn(move |request| handle::handle(Arc::clone(&service_app), peer, request));
    let connection = http.serve_connection(TokioIo::new(stream), service);
    let closing = told_to_close(Arc::clone(app));
    tokio::spawn(async move {
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = closing => {
                // Idle connections end here, others after their answer.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection ended");
        }
        drop(counted);
    });
}

async fn told_to_close(app: Arc<App>) {
    let mut closing = app.closing.subscribe();
    let _ = closing.wait_for(|c| *c).await;
}

async fn refuse(stream: &mut TcpStream) -> std::io::Result<()> {
    let body = r#"{"error":"too_many_connections","message":"The server has too many connections","details":{}}"#;
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}
