//! The real program on the checkpoint of the tests, watched from outside.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::client::{Client, Part};
use crate::support::golden;

/// The program, serving the checkpoint of the tests.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) client: Client,
    pub(crate) data: tempfile::TempDir,
}

impl Program {
    /// Starts it with these variables beside its own, and waits until it is ready.
    pub(crate) fn start(variables: &[(&str, &str)]) -> Self {
        Self::on(tempfile::tempdir().expect("a temporary folder"), variables)
    }

    /// The same with what an earlier one left.
    pub(crate) fn on(data: tempfile::TempDir, variables: &[(&str, &str)]) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr());
        let address = free.expect("a free port");
        let log = std::fs::File::create(data.path().join("log")).expect("a log");
        let child = Command::new(env!("CARGO_BIN_EXE_cosyvoice"))
            .arg("serve")
            .env_clear()
            .env("MODEL_DIR", golden::model_dir())
            .env("DATA_DIR", data.path().join("data"))
            .env("HOST", "127.0.0.1")
            .env("PORT", address.port().to_string())
            .env("LOG_LEVEL", "cosyvoice=error")
            .envs(variables.iter().copied())
            .current_dir(data.path())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("the program starts");
        let program = Self {
            child,
            // The models compute for real, on a machine that may be busy.
            client: Client::new(address).patient(Duration::from_secs(300)),
            data,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while std::net::TcpStream::connect(address).is_err()
            || program.client.get("/ready").status != 200
        {
            assert!(Instant::now() < deadline, "the server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        program
    }

    /// The folder that it leaves; it must have ended.
    pub(crate) fn into_data(mut self) -> tempfile::TempDir {
        let other = tempfile::tempdir().expect("a temporary folder");
        std::mem::replace(&mut self.data, other)
    }

    fn proc(&self, name: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.child.id().to_string())
            .join(name)
    }

    /// Resident memory in KiB.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(self.proc("status")).expect("the process lives");
        let line = status.lines().find(|l| l.starts_with("VmRSS:"));
        let number = line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok());
        number.expect("a size")
    }

    /// Entries of a folder of the process: `fd`, `task`.
    pub(crate) fn entries(&self, name: &str) -> usize {
        std::fs::read_dir(self.proc(name))
            .expect("the process lives")
            .count()
    }

    /// Files of a folder of its data.
    pub(crate) fn files(&self, name: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.data.path().join("data").join(name));
        let names = entries.expect("a folder").flatten();
        names
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect()
    }

    /// Waits until nothing runs and nothing is held, and says what is otherwise.
    pub(crate) fn idle(&self) {
        let deadline = Instant::now() + Duration::from_secs(300);
        loop {
            let stats = self.client.get("/api/v1/stats").json();
            let (tasks, engine) = (&stats["tasks"], &stats["engine"]);
            let held = [
                &tasks["running"],
                &tasks["queued"],
                &engine["running"],
                &engine["queued"],
                &engine["kv_pages_used"],
            ];
            // This question has a connection of its own.
            if held.iter().all(|n| **n == 0) && stats["connections"] == 1 {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "something is held for ever: {stats}"
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn voices_of_the_command_line_are_seen_at_once() {
    let program = Program::start(&[]);
    let client = &program.client;
    let recording = golden::kit().join("golden/prompt.wav");
    let add = |name: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cosyvoice"));
        command
            .args(["voices", "add", name, "--prompt-audio"])
            .arg(&recording);
        command.env_clear().env("MODEL_DIR", golden::model_dir());
        command.env("DATA_DIR", program.data.path().join("data"));
        command
            .output()
            .expect("the binary starts")
            .status
            .success()
    };
    let speak = |name: &str| {
        let body = json!({"text": "Hello.", "voice_id": name});
        client
            .post("/api/v1/synthesize/cross-lingual", &body)
            .status
    };
    assert_eq!(speak("ann"), 404);
    assert!(add("ann"));
    assert_eq!(speak("ann"), 200);
    assert!(add("ben"));
    let listed = client.get("/api/v1/voices/?page_size=200").json();
    let listed = listed["voices"].as_array().expect("a list");
    for name in ["ann", "ben"] {
        assert!(listed.iter().any(|v| v["voice_id"] == name), "{listed:?}");
    }
    // A name is one voice, whichever way it came.
    let create = |name: &str| {
        let bytes = std::fs::read(&recording).expect("a recording");
        let parts = [
            Part::Text("voice_id", name),
            Part::File("audio_file", &bytes),
        ];
        client.form("POST", "/api/v1/voices/", &parts).status
    };
    assert_eq!((create("ann"), create("cleo")), (409, 201));
    assert!(!add("cleo"));
}
