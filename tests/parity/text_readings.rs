//! Readings: the test lines of WeTextProcessing through its grammars, and our own table through the front door.

use std::path::PathBuf;
use std::sync::Arc;

use cosyvoice::text::{
    self, Frontend, FrontendOptions, Fst, Language, Part, Search, TextOptions, Tokenizer,
};

use crate::support::golden;

/// Beginnings of lines whose expected reading the grammars of wetext 0.1.8 cannot give: they write no space before the
/// comma of a date, and a number of three digits as `two fifty six` only at a higher cost. The English grammar that WeTextProcessing
/// itself ships with these lines reads them.
const BY_ITS_OWN_GRAMMAR: [&str; 2] = ["jan. 5, 2012", "The National Map, accessed April 1, 2011"];

pub(super) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/text")
        .join(name)
}

/// Rows of a table, without comments.
fn rows(name: &str) -> Vec<Vec<String>> {
    let text = std::fs::read_to_string(fixture(name)).expect("fixture");
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split('\t').map(String::from).collect())
        .collect()
}

fn frontend() -> Frontend {
    let tokenizer = Tokenizer::load(&golden::model_dir()).expect("tokenizer");
    Frontend::new(Arc::new(tokenizer), FrontendOptions::default())
}

fn report(what: &str, wrong: &[String], count: usize) {
    assert!(
        wrong.is_empty(),
        "{} of {count} {what} differ\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn our_readings() {
    let rows = rows("readings.tsv");
    assert!(rows.len() >= 150, "only {} readings", rows.len());
    let frontend = frontend();
    let mut wrong = Vec::new();
    for row in &rows {
        let [language, written, spoken] = row.as_slice() else {
            panic!("malformed row {row:?}");
        };
        let options = TextOptions {
            language: match language.as_str() {
                "auto" => None,
                code => Some(code.parse().expect("language")),
            },
            ..TextOptions::default()
        };
        let ours = frontend
            .prepare(written, &options)
            .map(|p| p.normalized_text);
        if ours.as_ref() != Ok(spoken) {
            wrong.push(format!(
                "{written}\n  expected {spoken}\n  ours     {ours:?}"
            ));
        }
    }
    report("readings", &wrong, rows.len());
}

fn grammar(name: &str) -> Fst {
    let bytes = std::fs::read(fixture("wetext").join(name)).expect("grammar");
    Fst::from_gzip(&bytes).expect("grammar")
}

/// What wetext alone makes of a text, the way its `Normalizer` picks grammars: the versions that the official code uses and 0.1.8.
fn by_wetext(written: &str, language: &str) -> Vec<String> {
    let language = match language {
        "auto" if text::official::contains_chinese(written) => Language::Chinese,
        "auto" => Language::English,
        code => code.parse().expect("language"),
    };
    let digits = written.chars().any(|c| c.is_ascii_digit());
    let newer = match language {
        Language::English => text::grammar_normalize(written, language),
        _ if digits => text::grammar_normalize(written, language),
        _ => Some(written.to_owned()),
    };
    let official = text::official_normalize(written).ok();
    newer.into_iter().chain(official).collect()
}

/// Words and marks without what readings of the same words may differ in: white space around marks, escapes, a closing mark.
fn bare(spoken: &str) -> String {
    let words = spoken.replace('\\', "");
    let kept: String = words
        .char_indices()
        .filter(|&(i, c)| {
            let before_mark = words[i..]
                .trim_start()
                .starts_with([',', '.', '!', '?', '"', '\'']);
            !(c.is_whitespace() && before_mark)
        })
        .map(|(_, c)| c)
        .collect();
    kept.trim()
        .trim_end_matches(['.', '。', '!', '！'])
        .to_lowercase()
}

/// The table is of texts that wetext reads otherwise or leaves as they are.
#[test]
fn wetext_alone_reads_none_of_ours() {
    let rows = rows("readings.tsv");
    let known: Vec<&str> = rows
        .iter()
        .filter(|row| {
            by_wetext(&row[1], &row[0])
                .iter()
                .any(|r| bare(r) == bare(&row[2]))
        })
        .map(|row| row[1].as_str())
        .collect();
    assert!(known.is_empty(), "wetext reads these already: {known:#?}");
    assert!(rows.len() >= 150);
}

/// The optional steps of wetext around its grammar, which WeTextProcessing's own tests switch on.
struct ChineseSteps {
    search: std::cell::RefCell<Search>,
    traditional: Fst,
    without_erhua: Fst,
    after: [Fst; 3],
}

impl ChineseSteps {
    fn load() -> Self {
        Self {
            search: Default::default(),
            traditional: grammar("traditional_to_simple.fst.gz"),
            without_erhua: grammar("verbalizer_remove_erhua.fst.gz"),
            after: [
                grammar("full_to_half.fst.gz"),
                grammar("remove_interjections.fst.gz"),
                grammar("tag_oov.fst.gz"),
            ],
        }
    }

    fn run(&self, fst: &Fst, text: &str) -> Option<String> {
        let output = self.search.borrow_mut().transduce(fst, text.as_bytes())?;
        Some(String::from_utf8(output).expect("UTF-8").trim().to_owned())
    }

    fn read(&self, written: &str) -> Option<String> {
        let mut text = self.run(&self.traditional, written)?;
        if text.contains(|c: char| c.is_ascii_digit() || ('０'..='９').contains(&c) || c == '儿')
        {
            text = self.run(
                &self.without_erhua,
                &text::grammar_tokens(&text, Language::Chinese)?,
            )?;
        }
        self.after
            .iter()
            .try_fold(text, |text, fst| self.run(fst, &text))
    }
}

/// The reading of `<say-as interpret-as="cardinal">`.
fn cardinal(frontend: &Frontend, language: &str, number: &str) -> Option<String> {
    let ssml = format!(
        "<speak xml:lang=\"{language}\"><say-as interpret-as=\"cardinal\">{number}</say-as></speak>"
    );
    Some(
        frontend
            .prepare(&ssml, &TextOptions::default())
            .ok()?
            .normalized_text,
    )
}

/// The English grammar of the package `wetextprocessing`.
struct EnglishGrammar {
    tagger: Fst,
    verbalizer: Fst,
}

impl EnglishGrammar {
    fn load() -> Self {
        Self {
            tagger: grammar("own_en_tagger.fst.gz"),
            verbalizer: grammar("own_en_verbalizer.fst.gz"),
        }
    }

    /// The fields of its dates come in the order in which this verbaliser takes them: the day first.
    fn read(&self, written: &str) -> Option<String> {
        let mut search = Search::default();
        let tagged = search.transduce(&self.tagger, written.as_bytes())?;
        let tagged = String::from_utf8(tagged).expect("UTF-8");
        let ordered = text::reorder_tokens(&tagged, Language::English)?;
        let spoken = search.transduce(&self.verbalizer, ordered.as_bytes())?;
        Some(String::from_utf8(spoken).expect("UTF-8"))
    }
}

/// All lines of the test data of WeTextProcessing 1.2.0.
#[test]
fn wetextprocessing_lines() {
    let steps = ChineseSteps::load();
    let frontend = frontend();
    let own = EnglishGrammar::load();
    let rows = rows("wetextprocessing.tsv");
    assert!(rows.len() >= 392, "only {} lines", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        let [language, kind, written, spoken] = row.as_slice() else {
            panic!("malformed row {row:?}");
        };
        let ours = match (language.as_str(), kind.as_str()) {
            // Tests of the number rule alone: without context the whole grammar reads some as telephone numbers or years.
            ("zh", "number") | ("en", "roman") => cardinal(&frontend, language, written),
            ("en", "cardinal")
                if written.len() == 4
                    && written.starts_with('1')
                    && spoken.starts_with("thousand") =>
            {
                let grouped = format!("{},{}", &written[..1], &written[1..]);
                text::grammar_normalize(&grouped, Language::English)
            }
            ("en", _) if BY_ITS_OWN_GRAMMAR.iter().any(|o| written.starts_with(o)) => {
                own.read(written)
            }
            ("zh", _) => steps.read(written),
            (code, _) => text::grammar_normalize(written, code.parse().expect("language")),
        };
        let ours = ours.unwrap_or_default();
        if ours.trim() != spoken {
            wrong.push(format!(
                "{language}/{kind}: {written}\n  expected {spoken}\n  ours     {ours}"
            ));
        }
    }
    report("lines", &wrong, rows.len());
}

/// The grammars of wetext 0.1.8 give what wetext 0.1.8 gives.
#[test]
fn newer_grammars() {
    let path = golden::kit().join("golden/text_frontend_wetext.json");
    let Ok(bytes) = std::fs::read(&path) else {
        eprintln!("SKIPPED: {} is not in this kit", path.display());
        return;
    };
    let golden: serde_json::Value = serde_json::from_slice(&bytes).expect("json");
    let mut wrong = Vec::new();
    let cases = golden["cases"].as_array().expect("cases");
    for case in cases {
        let text = case["text"].as_str().expect("text");
        let Some(expected) = case["normalize_wetext_0_1_8"].as_str() else {
            continue;
        };
        let digits = text.chars().any(|c| c.is_ascii_digit());
        let detected = Language::detect(text);
        // wetext takes a text of digits alone for Chinese, and escapes quotes twice.
        let language = match detected {
            None if text.bytes().all(|b| b.is_ascii_digit()) => Language::Chinese,
            None => Language::English,
            Some(language) => language,
        };
        if language != Language::English && !digits || expected.contains('\\') {
            continue;
        }
        let ours = text::grammar_normalize(text, language).unwrap_or_default();
        if ours.trim() != expected {
            wrong.push(format!("{text}\n  expected {expected}\n  ours     {ours}"));
        }
    }
    report("cases", &wrong, cases.len());
}

/// Pauses, tags, SSML, lexicon and language, end to end.
#[test]
fn markup_makes_parts() {
    let frontend = frontend();
    let parts = |text: &str| {
        frontend
            .prepare(text, &TextOptions::default())
            .expect("prepared")
            .parts
    };
    let spoken: Vec<String> = parts(
        "I have <strong>3</strong> [laughter] apples.[pause:500ms]我有2只猫。<break time='1.5s'/>",
    )
    .iter()
    .map(|part| match part {
        Part::Speech {
            text,
            tokens,
            language,
        } => {
            assert!(!tokens.is_empty());
            format!("{language}:{text}")
        }
        Part::Pause { duration } => format!("{}", duration.as_millis()),
    })
    .collect();
    assert_eq!(
        spoken,
        [
            "en:I have <strong>three</strong> [laughter] apples.",
            "500",
            "zh:我有两只猫。",
            "1500"
        ]
    );
    let ssml = "<speak><p>Room <say-as interpret-as=\"digits\">101</say-as></p><p>Bye</p></speak>";
    assert!(
        matches!(&parts(ssml)[..], [Part::Speech { text, .. }] if text == "Room one zero one. Bye."),
        "{:?}",
        parts(ssml)
    );
}
