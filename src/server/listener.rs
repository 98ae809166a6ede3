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
            refuse(&mut stream, &TOO_MANY).await;
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
    let mut connection = http.serve_connection(TokioIo::new(stream), service);
    let closing = told_to_close(Arc::clone(app));
    tokio::spawn(async move {
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = closing => {
                // Idle connections end here, others after their answer.
                Pin::new(&mut connection).graceful_shutdown();
                (&mut connection).await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "connection ended");
            let parts = connection.into_parts();
            // An idle connection is closed without a word.
            if error.is_timeout() && !parts.read_buf.is_empty() {
                refuse(&mut parts.io.into_inner(), &TOO_SLOW).await;
            }
        }
        drop(counted);
    });
}

async fn told_to_close(app: Arc<App>) {
    let mut closing = app.closing.subscribe();
    let _ = closing.wait_for(|c| *c).await;
}

/// An answer that is given without a request.
struct Refusal {
    status: &'static str,
    header: &'static str,
    error: &'static str,
    message: &'static str,
}

const TOO_MANY: Refusal = Refusal {
    status: "503 Service Unavailable",
    header: "retry-after: 1\r\n",
    error: "too_many_connections",
    message: "The server has too many connections",
};

const TOO_SLOW: Refusal = Refusal {
    status: "408 Request Timeout",
    header: "",
    error: "request_timeout",
    message: "The request's headers took too long",
};

/// Answers and closes, as far as the client takes it.
async fn refuse(stream: &mut TcpStream, refusal: &Refusal) {
    let Refusal {
        status,
        header,
        error,
        message,
    } = refusal;
    let body = format!(r#"{{"error":"{error}","message":"{message}","details":{{}}}}"#);
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{header}connection: close\r\n\r\n{body}",
        body.len()
    );
    let send = async {
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    };
    let _ = tokio::time::timeout(CLOSING, send).await;
}
