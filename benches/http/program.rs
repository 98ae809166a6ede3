//! The program, serving the checkpoint of the tests in a folder of its own.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::connection::Connection;

pub(crate) struct Program {
    child: Child,
    address: SocketAddr,
    _data: tempfile::TempDir,
}

impl Program {
    pub(crate) fn start(workers: usize) -> Self {
        let data = tempfile::tempdir().expect("a temporary folder");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let address = free.expect("a free port");
        let root = env!("CARGO_MANIFEST_DIR");
        let child = Command::new(env!("CARGO_BIN_EXE_cosyvoice"))
            .arg("serve")
            .env_clear()
            .env(
                "MODEL_DIR",
                format!("{root}/tests/fixtures/micro-kit/micro"),
            )
            .env("DATA_DIR", data.path())
            .env("HOST", "127.0.0.1")
            .env("PORT", address.port().to_string())
            .env("MAX_SYNTHESIS_WORKERS", workers.to_string())
            .env("MAX_QUEUED_TASKS", "100000")
            .env("LOG_LEVEL", "error")
            .current_dir(data.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("the program starts");
        let program = Self {
            child,
            address,
            _data: data,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !program.is_ready() {
            assert!(Instant::now() < deadline, "the server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        program
    }

    fn is_ready(&self) -> bool {
        let connection = Connection::open(self.address);
        connection.is_ok_and(|mut c| c.is_ok("/ready"))
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.address).expect("the server accepts")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // What still runs is not wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
