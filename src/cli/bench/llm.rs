//! The language model: decode steps per batch, and a prefill.

use std::io::Write;

use super::{Bench, cost, median, median_seconds_between};
use crate::backend::{Backend, Result};
use crate::model::llm::{InputToken, Llm, LlmWorkspace, StepSequence};
use crate::tensor::Trace;

const PAGE_SIZE: usize = 16;
/// Positions that a decoding sequence looks back on: ten seconds of speech and their text.
const CONTEXT: usize = 400;
/// Positions of a prompt.
const PROMPT: usize = 150;
/// Decode steps of one timed call.
const STEPS: usize = 5;

/// Prints a line per case; tokens per second of the first batch size.
pub(super) fn run<B: Backend>(bench: &Bench<'_, B>, out: &mut impl Write) -> anyhow::Result<f64> {
    let config = &bench.checkpoint.config().llm;
    let llm = Llm::load(bench.backend, &bench.checkpoint.llm(), config)?;
    let weights = cost::llm_parameters(config);
    let bytes = weights * bench.bytes_per_weight;
    let mut first = None;
    for &batch in &bench.args.batch {
        let (mut reads, mut products) = (Vec::new(), Vec::new());
        let measure = || {
            if let Some(now) = bench.now {
                reads.push((now.read_bytes_per_s)());
                products.push((now.product_flops_per_s)());
            }
        };
        let seconds = steps(bench, &llm, (batch, CONTEXT), 1, (STEPS, measure))? / STEPS as f64;
        let of_reads = |rate: f64| 100.0 * bytes as f64 / seconds / rate;
        let between = match reads.is_empty() {
            true => String::new(),
            false => format!(
                ", {:.0} % of those between its steps",
                of_reads(median(reads))
            ),
        };
        let share = bench.share_of_products(2.0 * (weights * batch) as f64 / seconds, products);
        let tokens_per_s = batch as f64 / seconds;
        let alone = *first.get_or_insert(tokens_per_s);
        writeln!(
            out,
            "llm decode x{batch:<3} {:8.2} ms  {tokens_per_s:7.1} tokens/s ({:.1}x the first)  weights at {:.1} GB/s = {:.0} % of reads{between}, {share}",
            seconds * 1e3,
            tokens_per_s / alone,
            bytes as f64 / seconds / 1e9,
            of_reads(bench.limits.read_bytes_per_s),
        )?;
    }
    let mut products = Vec::new();
    let measure = || products.extend(bench.now.map(|now| (now.product_flops_per_s)()));
    let seconds = steps(bench, &llm, (1, 0), PROMPT, (1, measure))?;
    writeln!(
        out,
        "llm prefill {PROMPT} {:8.1} ms  {}",
        seconds * 1e3,
        bench.share_of_products(2.0 * (weights * PROMPT) as f64 / seconds, products),
    )?;
    Ok(first.unwrap_or(f64::NAN))
}

/// Median seconds of `repeat` steps of `rows` new rows for each of `batch` sequences, with something else before each round.
fn steps<B: Backend>(
    bench: &Bench<'_, B>,
    llm: &Llm<B>,
    (batch, context): (usize, usize),
    rows: usize,
    (repeat, before): (usize, impl FnMut()),
) -> Result<f64> {
    let backend = bench.backend;
    let pages_each = (context + rows).div_ceil(PAGE_SIZE);
    let shape = llm.kv_shape(batch * pages_each, PAGE_SIZE);
    let mut kv = backend.alloc_kv(shape)?;
    let mut ws = LlmWorkspace::new(backend)?;
    let pages: Vec<u32> = (0..shape.pages as u32).collect();
    let vocabulary = llm.config().speech_token_size;
    let inputs: Vec<InputToken> = (0..rows)
        .map(|i| InputToken::Speech((i % vocabulary) as i32))
        .collect();
    let sequences: Vec<_> = pages
        .chunks(pages_each)
        .map(|pages| StepSequence {
            inputs: &inputs,
            context,
            pages,
            logits: true,
        })
        .collect();
    let step = || {
        for _ in 0..repeat {
            llm.step(
                backend,
                PAGE_SIZE,
                &sequences,
                None,
                &mut kv,
                &mut ws,
                &Trace::off(),
            )?;
        }
        Ok(())
    };
    median_seconds_between(backend, bench.args.rounds, step, before)
}
