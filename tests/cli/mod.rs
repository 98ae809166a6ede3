//! The binary as users run it, on the checkpoint of the tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::golden;
use crate::support::silence::assert_silences;

/// A folder of its own for each test, and the commands run in it.
struct Shell {
    dir: tempfile::TempDir,
}

impl Shell {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary folder"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_cosyvoice"))
            .args(args)
            .env_clear()
            .env("MODEL_DIR", golden::model_dir())
            .env("DATA_DIR", self.path("data"))
            .current_dir(self.dir.path())
            .output()
            .expect("the binary starts")
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {errors}");
        String::from_utf8(output.stdout).expect("UTF-8 output")
    }

    /// The error of a command that must fail without panicking.
    fn error(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{args:?} succeeded");
        assert!(!errors.contains("panicked"), "{args:?}: {errors}");
        errors
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}

fn prompt() -> String {
    golden::kit()
        .join("golden/prompt.wav")
        .display()
        .to_string()
}

/// Samples of a 16-bit wav file, which must be sound and not all silence.
fn samples(path: &Path) -> Vec<i16> {
    let mut reader =
        hound::WavReader::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(reader.spec().channels, 1);
    let samples: Vec<i16> = reader.samples().map(|s| s.expect("a sample")).collect();
    assert!(
        samples.iter().any(|&s| s != 0),
        "{} is silent",
        path.display()
    );
    samples
}

#[test]
fn every_mode_speaks() {
    let shell = Shell::new();
    let prompt = prompt();
    let say = "Hello, how are you?";
    shell.ok(&["synth", say, "--mode", "sft", "-o", "sft.wav"]);
    let cloned = ["synth", say, "--prompt-audio", &prompt];
    let with = |more: &[&'static str]| [&cloned[..], more].concat();
    shell.ok(&with(&[
        "--mode",
        "zero-shot",
        "--prompt-text",
        "The rain fell.",
        "-o",
        "zs.wav",
    ]));
    shell.ok(&with(&["--mode", "cross-lingual", "-o", "cl.wav"]));
    shell.ok(&with(&[
        "--mode",
        "instruct",
        "--instruct",
        "Slowly.",
        "-o",
        "in.wav",
    ]));
    for name in ["sft.wav", "zs.wav", "cl.wav", "in.wav"] {
        samples(&shell.path(name));
    }
}

#[test]
fn one_seed_gives_one_file_on_any_number_of_threads() {
    let shell = Shell::new();
    let say = |seed: &str, threads: &str, name: &str| {
        shell.ok(&[
            "synth",
            "Good morning.",
            "--seed",
            seed,
            "--threads",
            threads,
            "-o",
            name,
        ]);
        shell.bytes(name)
    };
    let first = say("7", "1", "a.wav");
    assert_eq!(first, say("7", "2", "b.wav"));
    assert_ne!(first, say("8", "1", "c.wav"));
}

#[test]
fn pauses_are_silence_of_their_length() {
    let shell = Shell::new();
    let say = |text: &str, more: &[&str]| {
        shell.ok(&[&["synth", text, "-o", "p.wav"], more].concat());
        samples(&shell.path("p.wav"))
    };
    assert_silences(&say("Hello there. And you?", &[]), &[]);
    let marked = "One.[pause:500ms]Two.[pause:1.5s]Three.[pause:37ms]Four.";
    assert_silences(&say(marked, &[]), &[500, 1500, 37]);
    // A pause is as long as it says at any speed, in a stream, and unread text around it changes nothing.
    assert_silences(&say(marked, &["--speed", "2.0"]), &[500, 1500, 37]);
    assert_silences(&say(marked, &["--stream"]), &[500, 1500, 37]);
    assert_silences(
        &say(marked, &["--text-normalization", "off"]),
        &[500, 1500, 37],
    );
    let ssml = "<speak>你好。<break time='500ms'/>Good <break time=\"0.25s\"/> bye<break strength='strong'/>。</speak>";
    assert_silences(&say(ssml, &[]), &[500, 250, 700]);
    assert_silences(&say("[pause:120ms]Now.[pause:80ms]", &[]), &[120, 80]);
}

/// The report of one text, which must be the only one.
fn normalized(shell: &Shell, text: &str, more: &[&str]) -> serde_json::Value {
    let out = shell.ok(&[&["normalize", text, "--json"], more].concat());
    serde_json::from_str(&out).expect("one JSON object")
}

#[test]
fn normalize_reports_how_a_text_is_read() {
    let shell = Shell::new();
    let read =
        |text: &str, more: &[&str]| normalized(&shell, text, more)["normalized_text"].clone();
    let report = normalized(&shell, "I have 3.[pause:1.5s]我有2只猫。", &[]);
    assert_eq!(report["text"], "I have 3.[pause:1.5s]我有2只猫。");
    assert_eq!(
        report["normalized_text"],
        "I have three.[pause:1500ms]我有两只猫。"
    );
    assert_eq!(report["language"], "zh");
    let segments = report["segments"].as_array().expect("segments");
    assert_eq!(segments[0]["language"], "en");
    assert_eq!(segments[1]["pause_ms"], 1500.0);
    assert_eq!(segments[2]["text"], "我有两只猫。");
    let tokens = |i: usize| segments[i]["tokens"].as_u64().expect("tokens");
    assert!(tokens(0) > 0 && tokens(2) > 0);
    assert_eq!(report["tokens"], tokens(0) + tokens(2));

    assert_eq!(read("3", &["--language", "zh"]), "三");
    assert_eq!(read("3", &["--language", "ja"]), "三");
    assert_eq!(read("Привет 3", &[]), "Привет 3");
    assert_eq!(
        read("Привет 3", &["--text-normalization", "on"]),
        "Привет three"
    );
    assert_eq!(
        read("I have 3.", &["--text-normalization", "off"]),
        "I have 3."
    );
    assert_eq!(
        read("No. 5", &["--text-normalization", "official"]),
        "Number. five "
    );
    std::fs::write(shell.path("w.tsv"), "SQL\tsequel\n").expect("a file");
    assert_eq!(read("SQL 3", &["--lexicon", "w.tsv"]), "sequel three");
}

#[test]
fn normalize_reads_files_and_says_what_cannot_be_spoken() {
    let shell = Shell::new();
    std::fs::write(
        shell.path("t.txt"),
        "One 1\n\n<speak><b>2</b></speak>\nThree 3\n",
    )
    .expect("a file");
    let output = shell.run(&["normalize", "--file", "t.txt", "--json"]);
    let out = String::from_utf8(output.stdout).expect("UTF-8 output");
    let reports: Vec<serde_json::Value> = out
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    assert_eq!(reports.len(), 3);
    assert_eq!(reports[0]["normalized_text"], "One one");
    assert!(
        reports[1]["error"]
            .as_str()
            .is_some_and(|e| e.contains("<b>")),
        "{out}"
    );
    assert_eq!(reports[2]["normalized_text"], "Three three");
    assert!(!output.status.success());
    let table = shell.ok(&["normalize", "Room 101"]);
    for line in ["language    en", "normalized  Room one oh one"] {
        assert!(table.contains(line), "{table}");
    }
    assert!(table.contains(" tokens  Room one oh one."), "{table}");
    for (text, word) in [("?!… 🙂", "speak"), ("a[pause:5m]", "5m"), ("", "speak")] {
        assert!(
            shell
                .error(&["normalize", text])
                .contains("cannot be spoken"),
            "{text}"
        );
        assert!(
            shell.run(&["normalize", text]).stdout.starts_with(b"error"),
            "{word}"
        );
    }
}

#[test]
fn streaming_writes_a_playable_file_to_a_pipe() {
    let shell = Shell::new();
    let say = [
        "synth",
        "Good morning to you all.",
        "--stream",
        "--format",
        "wav",
        "-o",
        "-",
    ];
    let output = shell.run(&say);
    assert!(output.status.success());
    assert!(output.stderr.is_empty(), "quiet in a pipe");
    assert_eq!(&output.stdout[..4], b"RIFF");
    assert!(output.stdout.len() > 44 + 24_000);
}

#[test]
fn the_extension_chooses_the_format() {
    let shell = Shell::new();
    for (format, magic) in [("flac", b"fLaC"), ("opus", b"OggS"), ("wav", b"RIFF")] {
        let name = format!("a.{format}");
        shell.ok(&["synth", "Hi there.", "-o", &name]);
        assert!(shell.bytes(&name).starts_with(magic), "{format}");
    }
}

#[test]
fn voices_are_kept_and_forgotten() {
    let shell = Shell::new();
    let prompt = prompt();
    let recording = ["--prompt-audio", &prompt, "--prompt-text", "The rain fell."];
    shell.ok(&[&["voices", "add", "ann"], &recording[..]].concat());
    assert!(shell.ok(&["voices", "list"]).lines().any(|l| l == "ann"));
    shell.ok(&["synth", "Hello.", "--voice", "ann", "-o", "kept.wav"]);
    shell.ok(&[&["synth", "Hello.", "-o", "fresh.wav"], &recording[..]].concat());
    assert_eq!(shell.bytes("kept.wav"), shell.bytes("fresh.wav"));
    let taken = shell.error(&["voices", "add", "ann", "--prompt-audio", &prompt]);
    assert!(taken.contains("already"), "{taken}");
    let path = shell.error(&["voices", "add", "../ann", "--prompt-audio", &prompt]);
    assert!(path.contains("cannot name"), "{path}");
    shell.ok(&["voices", "remove", "ann"]);
    let gone = shell.error(&["synth", "Hello.", "--voice", "ann", "-o", "x.wav"]);
    assert!(gone.contains("no voice 'ann'"), "{gone}");
}

/// Twenty lines, eight at a time: each file equals the one made alone; a second run makes only what is missing.
#[test]
fn a_batch_equals_its_lines_alone_and_resumes() {
    let shell = Shell::new();
    let text = |i: usize| {
        format!(
            "Number {i}: {} today.",
            ["rain", "snow", "wind", "sun"][i % 4]
        )
    };
    let lines: Vec<String> = (0..20)
        .map(|i| format!(r#"{{"id": "line{i}", "text": "{}", "seed": {i}}}"#, text(i)))
        .collect();
    std::fs::write(shell.path("lines.jsonl"), lines.join("\n")).expect("written");
    let batch = ["batch", "lines.jsonl", "--jobs", "8", "-o", "out"];
    shell.ok(&batch);
    for i in [0, 7, 19] {
        shell.ok(&[
            "synth",
            &text(i),
            "--seed",
            &i.to_string(),
            "-o",
            "alone.wav",
        ]);
        let in_batch = shell.bytes(&format!("out/line{i}.wav"));
        assert_eq!(in_batch, shell.bytes("alone.wav"), "line {i}");
    }
    let made = || {
        let file = std::fs::metadata(shell.path("out/line3.wav"));
        file.and_then(|m| m.modified()).expect("a time")
    };
    let before = made();
    std::fs::remove_file(shell.path("out/line4.wav")).expect("removed");
    shell.ok(&batch);
    assert!(shell.path("out/line4.wav").exists());
    assert_eq!(made(), before);
    assert_eq!(
        std::fs::read_dir(shell.path("out"))
            .expect("a folder")
            .count(),
        20
    );
}

#[test]
fn a_trace_names_every_stage() {
    let shell = Shell::new();
    shell.ok(&[
        "synth",
        "Hello.",
        "-o",
        "a.wav",
        "--trace",
        "trace.safetensors",
    ]);
    let bytes = shell.bytes("trace.safetensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    for stage in ["llm.lm_input", "flow.encoder_proj", "hift.f0", "hift.wav"] {
        assert!(file.names().contains(&stage), "{stage}");
    }
}

#[test]
fn bad_input_is_named() {
    let shell = Shell::new();
    std::fs::write(shell.path("noise.wav"), [7u8; 100]).expect("written");
    std::fs::write(shell.path("bad.jsonl"), "{\"text\": 3}").expect("written");
    let cases: &[(&[&str], &str)] = &[
        (&["synth", "  ", "-o", "x.wav"], "say"),
        (&["synth", "Hi.", "--speed", "9", "-o", "x.wav"], "speed"),
        (
            &["synth", "Hi.", "--speed", "0.7", "--stream", "-o", "x.wav"],
            "speed",
        ),
        (&["synth", "Hi.", "--format", "wma", "-o", "x.wav"], "wma"),
        (
            &["synth", "Hi.", "--model", "nowhere", "-o", "x.wav"],
            "nowhere",
        ),
        (
            &["synth", "Hi.", "--voice", "nobody", "-o", "x.wav"],
            "nobody",
        ),
        (
            &["synth", "Hi.", "--prompt-audio", "noise.wav", "-o", "x.wav"],
            "noise.wav",
        ),
        (
            &["synth", "Hi.", "--device", "cuda:7", "-o", "x.wav"],
            "cuda:7",
        ),
        (
            &["synth", "Hi.", "-o", "no/such/folder/x.wav"],
            "no/such/folder",
        ),
        (&["batch", "bad.jsonl"], "bad.jsonl:1"),
        (&["batch", "absent.jsonl"], "absent.jsonl"),
    ];
    for (args, word) in cases {
        let error = shell.error(args);
        assert!(error.contains(word), "{args:?}: {error}");
        assert!(!shell.path("x.wav").exists(), "{args:?} left a file");
    }
}

/// Of every stage a line for each precision, and shares of the limits at the start and of those between its calls.
#[test]
fn bench_says_what_shares_of_the_limits_the_stages_reach() {
    let shell = Shell::new();
    let args = "bench --weights f32,bf16,int8 --batch 1,2 --rounds 2 --seconds 0.2";
    let printed = shell.ok(&args.split(' ').collect::<Vec<_>>());
    let mut lines = 0;
    for line in printed.lines() {
        let limits = match line.split_whitespace().next() {
            Some("llm") if line.contains("decode") => 4,
            Some("llm") => 2,
            Some("flow" | "vocoder") => 3,
            _ => continue,
        };
        lines += 1;
        let percents: Vec<f64> = line
            .split(" % of ")
            .filter_map(|before| before.rsplit([' ', '=']).next()?.parse().ok())
            .collect();
        assert_eq!(percents.len(), limits, "{line}");
        assert!(percents.iter().all(|p| p.is_finite()), "{line}");
        assert!(line.ends_with("% of those between"), "{line}");
    }
    // Two batches, a prompt, flow and vocoder, in three precisions.
    assert_eq!(lines, 15, "{printed}");
}
