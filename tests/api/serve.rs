//! A server of the stand-in on a free port, in this process.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cosyvoice::server::{Server, tasks_config};
use cosyvoice::settings::Settings;
use cosyvoice::tasks::Tasks;
use cosyvoice::telemetry::Metrics;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::client::Client;
use super::fake::Fake;

/// A running server; dropped, it drains and ends.
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    pub(crate) fake: Arc<Fake>,
    data: Option<TempDir>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// Settings with these values instead of the defaults.
pub(crate) fn settings(data: &Path, values: &[(&str, &str)]) -> Settings {
    let mut all = HashMap::from([
        ("HOST", "127.0.0.1"),
        ("PORT", "0"),
        ("DATA_DIR", data.to_str().expect("a UTF-8 path")),
        ("SHUTDOWN_TIMEOUT", "5"),
    ]);
    all.extend(values.iter().copied());
    Settings::resolve(&|name| all.get(name).map(|v| (*v).to_owned())).expect("valid settings")
}

impl Serving {
    pub(crate) fn new(values: &[(&str, &str)]) -> Self {
        Self::paced(Duration::from_micros(100), values)
    }

    /// Every character takes `pace`.
    pub(crate) fn paced(pace: Duration, values: &[(&str, &str)]) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        Self::on(data, pace, values)
    }

    pub(crate) fn on(data: TempDir, pace: Duration, values: &[(&str, &str)]) -> Self {
        let settings = settings(data.path(), values);
        let fake = Arc::new(Fake::new(pace));
        let (address_sender, address) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let synthesis = Arc::clone(&fake);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            runtime.block_on(async move {
                let shutdown = async move {
                    let _ = stopped.await;
                };
                run(
                    settings,
                    synthesis,
                    &|a| address_sender.send(a).expect("the test waits"),
                    shutdown,
                )
                .await;
            });
        });
        Self {
            address: address.recv().expect("the server starts"),
            fake,
            data: Some(data),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(self.address)
    }

    pub(crate) fn data(&self) -> &Path {
        self.data.as_ref().expect("not stopped").path()
    }

    /// Drains, ends, and gives the data folder back.
    pub(crate) fn stop(mut self) -> TempDir {
        self.end();
        self.data.take().expect("stopped once")
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the server ends without a panic");
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.end();
    }
}

/// Serves until `shutdown` ends.
pub(crate) async fn run(
    settings: Settings,
    fake: Arc<Fake>,
    started: &dyn Fn(SocketAddr),
    shutdown: impl Future<Output = ()>,
) {
    let metrics = Arc::new(Metrics::default());
    let mut config = tasks_config(&settings);
    config.webhook.first_retry = Duration::from_millis(50);
    let server = Server::bind(settings, Arc::clone(&metrics))
        .await
        .expect("a free port");
    let tasks = Tasks::open(config, fake, metrics).expect("a usable data folder");
    tasks.start();
    server.starter().ready(tasks);
    started(server.address());
    server.run(shutdown).await;
}
