//! Checkpoints from the outside: the parity kit opens, converts, and every kind of damage is named.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cosyvoice::checkpoint::{
    Checkpoint, CheckpointError, Dtype, Fault, Layout, Scope, Target, TensorFile, convert,
};

use cosyvoice::cpu::{Cpu, CpuOptions};
use cosyvoice::model::flow::Flow;

use crate::support::golden;
use crate::support::metrics::max_abs;

fn open() -> Checkpoint {
    Checkpoint::open(golden::model_dir()).unwrap_or_else(|e| panic!("{e}"))
}

fn file<'a>(checkpoint: &'a Checkpoint, stem: &str) -> &'a TensorFile {
    let mut files = checkpoint.files();
    files
        .find(|f| f.name().split('.').next() == Some(stem))
        .unwrap_or_else(|| panic!("no file {stem}"))
}

/// A copy of the kit's checkpoint that a test may damage.
fn copy() -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            let target = to.join(entry.file_name());
            if entry.path().is_dir() {
                copy(&entry.path(), &target);
            } else {
                std::fs::write(target, std::fs::read(entry.path()).unwrap()).unwrap();
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy(&golden::model_dir(), dir.path());
    dir
}

fn faults(dir: &Path) -> Vec<(String, Fault)> {
    match Checkpoint::open(dir) {
        Err(CheckpointError::Unusable { problems, .. }) => {
            problems.into_iter().map(|p| (p.file, p.what)).collect()
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the damaged checkpoint opened"),
    }
}

#[test]
fn the_official_layout_opens_with_all_dims_from_its_files() {
    let checkpoint = open();
    assert_eq!(checkpoint.layout(), Layout::Official);
    let config = checkpoint.config();
    let shape = |scope: Scope<'_>, name: &str| scope.shape(name).unwrap();
    let llm = &config.llm;
    assert_eq!(
        shape(checkpoint.llm(), "llm_decoder.weight"),
        [llm.speech_vocab_size, llm.hidden_size]
    );
    assert_eq!(
        checkpoint.llm().count("llm.model.model.layers"),
        llm.num_layers
    );
    let flow = &config.flow;
    assert_eq!(
        checkpoint.flow().count("encoder.encoders"),
        flow.encoder.num_blocks
    );
    assert_eq!(
        checkpoint.flow().count("encoder.up_encoders"),
        flow.encoder.num_up_blocks
    );
    let mid = checkpoint.flow().count("decoder.estimator.mid_blocks");
    assert_eq!(mid, flow.estimator.num_mid_blocks);
    assert_eq!(
        checkpoint.hift().count("ups"),
        config.hift.upsample_rates.len()
    );
    assert!(checkpoint.tokenizer_dir().join("vocab.json").is_file());
}

#[test]
fn every_onnx_weight_has_a_module_name() {
    let checkpoint = open();
    for stem in ["campplus", "speech_tokenizer_v2"] {
        let names = file(&checkpoint, stem).entries().keys();
        let odd: Vec<_> = names
            .filter(|n| n.contains("::") || n.contains('/'))
            .collect();
        assert!(odd.is_empty(), "{stem}: {odd:?}");
    }
    let tokens = checkpoint.config().speech_tokens.as_ref().unwrap();
    let block = checkpoint.speech_tokens().unwrap().at("blocks.0");
    let kernel = block.shape("attn.fsmn_block.weight").unwrap()[2];
    assert_eq!(tokens.fsmn_padding.iter().sum::<usize>(), kernel - 1);
    assert_eq!(block.shape("mlp.0.weight").unwrap()[1], tokens.state);
    let speaker = checkpoint.config().speaker.as_ref().unwrap();
    assert_eq!(speaker.blocks.len(), 3);
    assert!(!speaker.count_include_pad);
    let root = checkpoint.speaker().unwrap();
    assert!(root.has("head.layer1.0.shortcut.0.weight"));
    assert!(root.has("xvector.block3.tdnnd1.linear1.bias"));
}

#[test]
fn stored_speakers_are_read_with_their_strides() {
    let checkpoint = open();
    let voices = checkpoint.voices().unwrap();
    assert!(!voices.is_empty());
    let size = checkpoint.config().flow.spk_embed_dim;
    assert!(voices.values().all(|v| v.embedding.len() == size));

    let Some(expected) = golden::open("spk2info_zero_shot.safetensors") else {
        return;
    };
    let dir = copy();
    let stored = golden::kit().join("golden/spk2info_zero_shot.pt");
    std::fs::copy(stored, dir.path().join("spk2info.pt")).unwrap();
    let voices = Checkpoint::open(dir.path()).unwrap().voices().unwrap();
    let voice = voices
        .values()
        .find(|v| !v.mel.is_empty())
        .expect("a zero-shot speaker");
    assert_eq!(voice.mel, expected.f32("prompt_speech_feat"));
    assert_eq!(voice.embedding, expected.f32("flow_embedding"));
    assert_eq!(
        voice.speech_tokens,
        expected.i32("flow_prompt_speech_token")
    );
    assert_eq!(voice.prompt_text, expected.i32("prompt_text"));
}

/// Values of a tensor in the converted checkpoint beside those of the original, weight norms folded.
fn pairs(from: &Checkpoint, to: &Checkpoint) -> Vec<(String, Vec<f32>, Vec<f32>, Dtype)> {
    let mut pairs = Vec::new();
    let stems = ["llm", "flow", "hift", "campplus", "speech_tokenizer_v2"];
    let converted = ["llm", "flow", "hift", "speaker", "speech_tokens"];
    for (stem, converted) in stems.into_iter().zip(converted) {
        let (from, to) = (file(from, stem), file(to, converted));
        let mut seen = BTreeSet::new();
        for (name, entry) in to.entries() {
            if name.ends_with(".scale") {
                continue;
            }
            let actual = to.peek(name).unwrap().to_f32().into_owned();
            let expected = match from.peek(name) {
                Some(weight) => weight.to_f32().into_owned(),
                None => {
                    let module = name.strip_suffix(".weight").unwrap();
                    let folded = from.root().at(module).weight_norm(&entry.shape);
                    folded.to_f32().into_owned()
                }
            };
            seen.insert(name.clone());
            pairs.push((format!("{stem} {name}"), actual, expected, entry.dtype));
        }
        let lost: Vec<_> = from
            .entries()
            .keys()
            .filter(|n| !seen.contains(*n) && !n.contains("parametrizations"))
            .collect();
        assert!(
            lost.iter()
                .all(|n| n.as_str() == "llm.model.lm_head.weight"),
            "lost: {lost:?}"
        );
    }
    pairs
}

fn converted(target: Target) -> (tempfile::TempDir, Checkpoint, Checkpoint) {
    let from = open();
    let dir = tempfile::tempdir().unwrap();
    convert(&from, target, dir.path()).unwrap();
    let to = Checkpoint::open(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(to.layout(), Layout::Converted);
    assert_eq!(to.config(), from.config());
    assert_eq!(to.voices().unwrap(), from.voices().unwrap());
    assert!(to.tokenizer_dir().join("merges.txt").is_file());
    (dir, from, to)
}

#[test]
fn conversion_to_f32_keeps_every_value() {
    let (_dir, from, to) = converted(Target::F32);
    for (name, actual, expected, _) in pairs(&from, &to) {
        assert_eq!(actual, expected, "{name}");
    }
}

#[test]
fn conversion_to_bf16_and_int8_rounds_the_large_weights_alone() {
    for (target, dtype) in [(Target::Bf16, Dtype::Bf16), (Target::Int8, Dtype::I8)] {
        let (_dir, from, to) = converted(target);
        let mut rounded = 0;
        for (name, actual, expected, found) in pairs(&from, &to) {
            let peak = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
            let limit = match found {
                Dtype::F32 => 0.0,
                Dtype::Bf16 => peak / 256.0,
                _ => peak / 253.0,
            };
            assert!(max_abs(&actual, &expected) <= limit, "{name}");
            rounded += usize::from(found == dtype);
        }
        assert!(rounded > 20, "{rounded} tensors of {dtype:?}");
    }
}

#[test]
fn a_converted_checkpoint_converts_again() {
    let (_int8, _, int8) = converted(Target::Int8);
    let dir = tempfile::tempdir().unwrap();
    convert(&int8, Target::F32, dir.path()).unwrap();
    let f32 = Checkpoint::open(dir.path()).unwrap();
    for (a, b) in int8.files().zip(f32.files()) {
        for name in b.entries().keys() {
            let (a, b) = (a.peek(name), b.peek(name));
            if let (Some(a), Some(b)) = (a, b) {
                assert_eq!(a.to_f32(), b.to_f32(), "{name}");
            }
        }
    }
}

#[test]
fn missing_and_damaged_files_are_listed_together() {
    let dir = copy();
    let path = |name: &str| dir.path().join(name);
    std::fs::remove_file(path("flow.pt")).unwrap();
    std::fs::write(path("hift.pt"), b"not a zip").unwrap();
    let onnx = std::fs::read(path("campplus.onnx")).unwrap();
    std::fs::write(path("campplus.onnx"), &onnx[..onnx.len() / 2]).unwrap();
    let yaml = std::fs::read_to_string(path("cosyvoice2.yaml")).unwrap();
    let yaml = yaml.replace("solver: 'euler'", "solver: 'rk4'");
    std::fs::write(
        path("cosyvoice2.yaml"),
        yaml.replace("base_channels:", "bass:"),
    )
    .unwrap();
    let faults = faults(dir.path());
    let of = |file: &str| -> Vec<&Fault> {
        let mut found = faults.iter().filter(|(f, _)| f == file);
        let found: Vec<_> = found.by_ref().map(|(_, fault)| fault).collect();
        assert!(!found.is_empty(), "{file} is not among {faults:?}");
        found
    };
    assert_eq!(of("flow.pt"), [&Fault::FileMissing]);
    assert!(matches!(of("hift.pt")[0], Fault::Format(_)));
    assert!(matches!(of("campplus.onnx")[0], Fault::Format(_)));
    let config: Vec<String> = of("cosyvoice2.yaml")
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        config,
        [
            "flow.decoder.cfm_params.content.solver: expected euler, found rk4",
            "hift.base_channels: expected a positive integer, found nothing",
        ]
    );
}

#[test]
fn every_truncated_file_is_an_error() {
    let names = [
        "llm.pt",
        "flow.pt",
        "hift.pt",
        "campplus.onnx",
        "speech_tokenizer_v2.onnx",
    ];
    let dir = copy();
    for name in names {
        let path = dir.path().join(name);
        let whole = std::fs::read(&path).unwrap();
        for keep in [0, 1, 100, whole.len() / 3, whole.len() - 1] {
            std::fs::write(&path, &whole[..keep]).unwrap();
            let faults = faults(dir.path());
            assert_eq!(faults.len(), 1, "{name} cut to {keep}: {faults:?}");
            assert_eq!(faults[0].0, name);
        }
        std::fs::write(&path, &whole).unwrap();
    }
    Checkpoint::open(dir.path()).unwrap();
}

#[test]
fn sizes_that_disagree_are_named() {
    let dir = copy();
    let path = dir.path().join("cosyvoice2.yaml");
    let yaml = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        yaml.replace("sample_rate: 24000", "sample_rate: 22000"),
    )
    .unwrap();
    let text = format!("{:?}", faults(dir.path()));
    assert!(text.contains("sample_rate"), "{text}");
}

/// The text of a file of a copied checkpoint with one value replaced.
fn edit(dir: &Path, name: &str, from: &str, to: &str) {
    let path = dir.join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{name} does not hold {from}");
    std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
}

#[test]
fn a_configuration_of_another_model_is_named_by_its_sizes() {
    let dir = copy();
    let width = open().config().llm.hidden_size;
    let from = format!("\"hidden_size\": {width}");
    let to = format!("\"hidden_size\": {}", 2 * width);
    edit(dir.path(), "CosyVoice-BlankEN/config.json", &from, &to);
    let faults = faults(dir.path());
    assert_eq!(faults.len(), 1, "{faults:?}");
    let text = faults[0].1.to_string();
    let expected = format!(
        "llm.hidden_size: expected {width} as dimension 0 of llm.model.model.norm.weight, found {}",
        2 * width
    );
    assert_eq!((faults[0].0.as_str(), text), ("llm.pt", expected));
}

#[test]
fn every_misshaped_tensor_is_listed_after_loading() {
    let dir = copy();
    let units = open().config().flow.encoder.linear_units;
    let from = format!("linear_units: {units}");
    edit(
        dir.path(),
        "cosyvoice2.yaml",
        &from,
        &format!("linear_units: {}", units / 2),
    );
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let encoder = &checkpoint.config().flow.encoder;
    let cpu = Cpu::new(CpuOptions::default());
    Flow::load(&cpu, &checkpoint.flow(), &checkpoint.config().flow).unwrap();
    let Err(CheckpointError::Unusable { problems, .. }) = checkpoint.finish() else {
        panic!("the mis-shaped tensors were not noticed");
    };
    // w_1.weight, w_1.bias and w_2.weight of every block.
    let blocks = encoder.num_blocks + encoder.num_up_blocks;
    assert_eq!(problems.len(), 3 * blocks, "{problems:?}");
    let first = problems[0].to_string();
    let (expected, found) = (
        [units / 2, encoder.output_size],
        [units, encoder.output_size],
    );
    assert_eq!(
        first,
        format!(
            "flow.pt: tensor encoder.encoders.0.feed_forward.w_1.weight: expected {expected:?}, found {found:?}"
        )
    );
}

#[test]
fn other_folders_are_no_checkpoints() {
    let empty = tempfile::tempdir().unwrap();
    for dir in [empty.path().to_path_buf(), PathBuf::from("/nonexistent")] {
        let error = Checkpoint::open(&dir).unwrap_err();
        assert!(
            matches!(error, CheckpointError::NotACheckpoint { .. }),
            "{error}"
        );
    }
}
