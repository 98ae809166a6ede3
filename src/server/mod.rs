//! The HTTP API: accept loop, router, bodies, answers.
//!
//! [`Server::bind`] listens at once; until [`Starter::ready`] has handed it the tasks it answers 503 "starting". [`Server::run`]
//! serves until its shutdown future ends, then drains. Every request goes through `handle`: request id, CORS,
//! key, route, answer, log line, metrics; a panic in a handler costs that request only.

mod access;
mod body;
mod error;
mod fields;
mod handle;
mod listener;
mod range;
mod reply;
mod router;
mod routes;
mod sse;
mod urlencoded;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::settings::Settings;
use crate::tasks::{Config, Tasks, WebhookConfig};
use crate::telemetry::{Metrics, Snapshot};
use error::ApiError;

/// Bodies beyond a megabyte that are held in memory at the same time.
const LARGE_BODIES: usize = 16;

/// The method and path of every route, as in `openapi.json`.
pub fn routes() -> Vec<(&'static str, &'static str)> {
    router::ROUTES.iter().map(|r| (r.method, r.path)).collect()
}

/// The text of `/openapi.json`.
pub fn openapi() -> &'static str {
    routes::OPENAPI
}

/// What the tasks take from the settings.
pub fn tasks_config(settings: &Settings) -> Config {
    Config {
        data_dir: settings.data_dir.clone(),
        workers: settings.max_synthesis_workers,
        max_queued: settings.max_queued_tasks,
        max_per_client: settings.max_tasks_per_user,
        max_age: settings.max_task_age,
        cleanup_interval: settings.task_cleanup_interval,
        max_prompt: settings.max_audio_duration,
        webhook: WebhookConfig {
            secret: settings.webhook_secret.clone(),
            allow_private: settings.webhook_allow_private,
            first_retry: std::time::Duration::from_secs(5),
        },
    }
}

/// What all requests share.
struct App {
    settings: Settings,
    metrics: Arc<Metrics>,
    tasks: OnceLock<Tasks>,
    keys: access::Keys,
    router: router::Router,
    connections: AtomicUsize,
    /// Set when connections are to end after their answer.
    closing: watch::Sender<bool>,
    uploads: Semaphore,
    started: Instant,
}

impl App {
    /// The tasks, once the model is loaded.
    fn tasks(&self) -> Result<&Tasks, ApiError> {
        self.tasks.get().ok_or_else(error::starting)
    }

    fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            connections: self.connections.load(Ordering::Relaxed),
            ..Snapshot::default()
        };
        if let Some(tasks) = self.tasks.get() {
            (snapshot.running, snapshot.queued) = tasks.load();
            snapshot.workers = tasks.worker_count();
            snapshot.voices = tasks.voices().builtin().len() + tasks.voices().registered().len();
            snapshot.engine = tasks.synthesis().stats();
        }
        snapshot
    }
}

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

/// A listening server.
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    address: SocketAddr,
}

/// Hands a server its tasks.
#[derive(Clone)]
pub struct Starter(Arc<App>);

impl Starter {
    /// From now on the server is ready. A second call changes nothing.
    pub fn ready(&self, tasks: Tasks) {
        // The first call won; what it set stays.
        let _ = self.0.tasks.set(tasks);
    }
}

impl Server {
    /// Listens on the address of the settings.
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
    pub async fn bind(settings: Settings, metrics: Arc<Metrics>) -> Result<Self, BindError> {
        let address = SocketAddr::new(settings.host, settings.port);
        let error = |source| BindError { address, source };
        let listener = TcpListener::bind(address).await.map_err(error)?;
        let address = listener.local_addr().map_err(error)?;
        let app = App {
            keys: access::Keys::new(&settings.api_keys),
            router: router::Router::new(),
            settings,
            metrics,
            tasks: OnceLock::new(),
            connections: AtomicUsize::new(0),
            closing: watch::Sender::new(false),
            uploads: Semaphore::new(LARGE_BODIES),
            started: Instant::now(),
        };
        Ok(Self {
            app: Arc::new(app),
            listener,
            address,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn starter(&self) -> Starter {
        Starter(Arc::clone(&self.app))
    }

    /// Serves until `shutdown` ends; then takes nothing new, lets running work finish for the time of the settings, and returns.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        listener::serve(self.app, self.listener, shutdown).await;
    }
}
