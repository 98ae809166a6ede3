//! Conditional flow matching: the ODE from noise to mel in Euler steps with classifier-free guidance
//! (`flow/flow_matching.py`, `CausalConditionalCFM`). Every utterance carries its own step, so that a call can advance
//! utterances that began at different times.

use super::encoder::mask;
use super::estimator::{Batch, Estimator, EstimatorWorkspace, Tracer};
use super::prefix::{Carry, FlowPrefix};
use crate::backend::{Backend, Mask, Masks, Result};
use crate::model::config::{CfmConfig, TimeSchedule};
use crate::tensor::{Ids, Segments, Tensor, Trace};

/// Times of the Euler steps, accumulated in f32 as the reference does.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Schedule {
    /// `t` at which each step's velocity is taken.
    pub(super) t: Vec<f32>,
    /// Length of each step.
    pub(super) dt: Vec<f32>,
}

impl Schedule {
    pub(super) fn new(config: &CfmConfig) -> Self {
        let span = span(config.t_scheduler, config.n_timesteps);
        let (mut now, mut t, mut dt) = (span[0], Vec::new(), Vec::new());
        for &next in &span[1..] {
            t.push(now);
            dt.push(next - now);
            now += next - now;
        }
        Self { t, dt }
    }
}

/// `steps + 1` values from 0 to 1: `torch.linspace`, then the schedule's spacing.
fn span(schedule: TimeSchedule, steps: usize) -> Vec<f32> {
    let step = 1.0 / steps as f32;
    (0..=steps)
        .map(|i| {
            // torch.linspace counts from both ends.
            let linear = if i < steps.div_ceil(2) {
                step * i as f32
            } else {
                1.0 - step * (steps - i) as f32
            };
            match schedule {
                TimeSchedule::Linear => linear,
                TimeSchedule::Cosine => {
                    let angle = linear * 0.5 * std::f32::consts::PI;
                    1.0 - f64::from(angle).cos() as f32
                }
            }
        })
        .collect()
}

/// One utterance on its way from noise to mel. Reusable: [`Flow::encode`](super::Flow::encode) fills it anew.
pub struct FlowState<B: Backend> {
    /// The sample `[T, C]`: noise at step 0, the mel after the last step.
    pub(super) x: Tensor<B>,
    /// Encoder output `[T, C]`.
    pub(super) mu: Tensor<B>,
    /// Prompt mel, then zeros, `[T, C]`.
    pub(super) cond: Tensor<B>,
    /// Projected speaker `[1, C]`.
    pub(super) speaker: Tensor<B>,
    /// Frames that the prefix covers: row 0 of the tensors is this frame.
    pub(super) first_frame: usize,
    /// What the next call is to start from.
    pub(super) given: Option<FlowPrefix<B>>,
    /// What this call grows.
    pub(super) prefix: Option<FlowPrefix<B>>,
    pub(super) prompt_frames: usize,
    pub(super) step: usize,
    pub(super) steps: usize,
    pub(super) streaming: bool,
}

impl<B: Backend> FlowState<B> {
    /// An empty state, done.
    ///
    /// # Errors
    /// When the backend cannot allocate.
    pub fn new(backend: &B) -> Result<Self> {
        Ok(Self {
            x: backend.alloc_f32(0, 0)?,
            mu: backend.alloc(0, 0)?,
            cond: backend.alloc(0, 0)?,
            speaker: backend.alloc(0, 0)?,
            first_frame: 0,
            given: None,
            prefix: None,
            prompt_frames: 0,
            step: 0,
            steps: 0,
            streaming: false,
        })
    }

    /// Has the next call start from what earlier streaming calls of the same utterance (same voice, a beginning of its tokens)
    /// have left, and leave in turn what it adds. The result is the same as without, bit for bit. A call that is not
    /// streaming drops the prefix.
    pub fn set_prefix(&mut self, prefix: FlowPrefix<B>) {
        self.given = Some(prefix);
    }

    /// What the finished call leaves for the next, if it was given a prefix to grow.
    pub fn take_prefix(&mut self) -> Option<FlowPrefix<B>> {
        // Halfway through a call only some Euler steps have grown.
        self.prefix.take().filter(|_| self.is_done())
    }

    /// Mel frames to compute, the prompt's included unless a prefix covers them: the rows that an Euler step costs.
    pub fn frames(&self) -> usize {
        self.x.rows()
    }

    /// Mel frames of the prompt, at the beginning.
    pub fn prompt_frames(&self) -> usize {
        self.prompt_frames
    }

    /// Euler steps still to do.
    pub fn steps_left(&self) -> usize {
        self.steps - self.step
    }

    /// Whether the mel is finished.
    pub fn is_done(&self) -> bool {
        self.steps_left() == 0
    }
}

/// Buffers of an Euler step.
pub(super) struct CfmWorkspace<B: Backend> {
    /// Packed `[N, C]`.
    x: Tensor<B>,
    mu: Tensor<B>,
    cond: Tensor<B>,
    /// `[B, C]`
    speaker: Tensor<B>,
    /// `[B, 1]`
    dt: Tensor<B>,
    segments: Segments<B>,
    /// Segments, masks and steps of both guidance halves.
    both: Segments<B>,
    masks: Masks<B>,
    steps: Ids<B>,
    /// Estimator input `[2N, 4C]` and output `[2N, C]`.
    input: Tensor<B>,
    velocity: Tensor<B>,
    estimator: EstimatorWorkspace<B>,
}

impl<B: Backend> CfmWorkspace<B> {
    pub(super) fn new(backend: &B) -> Result<Self> {
        let empty = || backend.alloc(0, 0);
        Ok(Self {
            x: backend.alloc_f32(0, 0)?,
            mu: empty()?,
            cond: empty()?,
            speaker: empty()?,
            dt: backend.alloc_f32(0, 1)?,
            segments: Segments::new(backend, &[])?,
            both: Segments::new(backend, &[])?,
            masks: Masks::new(backend, &[])?,
            steps: backend.ids(&[])?,
            input: empty()?,
            velocity: backend.alloc_f32(0, 0)?,
            estimator: EstimatorWorkspace::new(backend)?,
        })
    }

    /// Packs the states' tensors.
    fn gather(&mut self, backend: &B, states: &[&mut FlowState<B>], mels: usize) -> Result<()> {
        let rows = states.iter().map(|s| s.frames()).sum();
        for t in [&mut self.x, &mut self.mu, &mut self.cond] {
            backend.resize(t, rows, mels)?;
        }
        backend.resize(&mut self.speaker, states.len(), mels)?;
        let mut row = 0;
        for (b, s) in states.iter().enumerate() {
            let n = s.frames();
            backend.copy_rows(&s.x, 0, &mut self.x, row, n)?;
            backend.copy_rows(&s.mu, 0, &mut self.mu, row, n)?;
            backend.copy_rows(&s.cond, 0, &mut self.cond, row, n)?;
            backend.copy_rows(&s.speaker, 0, &mut self.speaker, b, 1)?;
            row += n;
        }
        Ok(())
    }
}

/// The solver around the estimator.
pub(super) struct Cfm<B: Backend> {
    pub(super) estimator: Estimator<B>,
    pub(super) schedule: Schedule,
    pub(super) cfg_rate: f32,
    pub(super) mels: usize,
    /// Attention chunk in mel frames when streaming.
    pub(super) chunk: usize,
}

impl<B: Backend> Cfm<B> {
    /// Advances every state by one Euler step. None of them may be done.
    pub(super) fn step(
        &self,
        backend: &B,
        states: &mut [&mut FlowState<B>],
        ws: &mut CfmWorkspace<B>,
        trace: &Trace,
    ) -> Result<()> {
        if states.is_empty() {
            return Ok(());
        }
        let lengths: Vec<usize> = states.iter().map(|s| s.frames()).collect();
        let masks: Vec<Mask> = states
            .iter()
            .map(|s| mask(s.streaming, self.chunk))
            .collect();
        let steps: Vec<i32> = states.iter().map(|s| s.step as i32).collect();
        let dt: Vec<f32> = states.iter().map(|s| self.schedule.dt[s.step]).collect();
        ws.segments.update(backend, &lengths)?;
        // Once for the conditional rows, once for the unconditional ones.
        ws.both.update(backend, &lengths.repeat(2))?;
        ws.masks.update(backend, &masks.repeat(2))?;
        backend.upload_ids(&steps.repeat(2), &mut ws.steps)?;
        backend.resize(&mut ws.dt, dt.len(), 1)?;
        backend.upload(&dt, &mut ws.dt)?;
        ws.gather(backend, states, self.mels)?;
        let rows = 2 * ws.segments.total();
        backend.resize(&mut ws.input, rows, 4 * self.mels)?;
        backend.resize(&mut ws.velocity, rows, self.mels)?;
        backend.cfm_pack(
            &ws.x,
            &ws.mu,
            &ws.speaker,
            &ws.cond,
            &ws.segments,
            &mut ws.input,
        )?;
        let prefix = format!("flow.decoder.step{}", steps[0]);
        let tracer = Tracer {
            trace,
            prefix: &prefix,
        };
        if trace.is_on() {
            let t = states.iter().map(|s| self.schedule.t[s.step]).collect();
            trace.record_host(&format!("{prefix}.t"), states.len(), 1, t);
            tracer.record(backend, "x", &ws.x)?;
        }
        let at: Vec<usize> = states.iter().map(|s| s.step).collect();
        let prefixes = states.iter_mut().map(|s| s.prefix.as_mut()).collect();
        let (layers, channels) = (self.estimator.layers(), self.estimator.channels());
        let batch = Batch {
            segments: &ws.both,
            masks: &ws.masks,
            steps: &ws.steps,
            carry: Carry::new(backend, prefixes, &lengths, &at, layers, channels)?,
        };
        backend.recorded(|| {
            self.estimator.forward(
                backend,
                &ws.input,
                batch,
                &mut ws.estimator,
                &mut ws.velocity,
                &tracer,
            )?;
            let (x, v) = (&mut ws.x, &ws.velocity);
            backend.cfg_euler(x, v, self.cfg_rate, &ws.dt, &ws.segments)
        })?;
        for (b, state) in states.iter_mut().enumerate() {
            let range = ws.segments.range(b);
            backend.copy_rows(&ws.x, range.start, &mut state.x, 0, range.len())?;
            state.step += 1;
            if state.is_done()
                && let Some(prefix) = &mut state.prefix
            {
                prefix.commit();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_add_up_to_one_and_grow_under_the_cosine() {
        for t_scheduler in [TimeSchedule::Cosine, TimeSchedule::Linear] {
            let schedule = Schedule::new(&CfmConfig {
                t_scheduler,
                inference_cfg_rate: 0.7,
                n_timesteps: 10,
                noise_len: 16,
            });
            assert_eq!(schedule.t.len(), 10);
            assert_eq!(schedule.t[0], 0.0);
            let sum: f32 = schedule.dt.iter().sum();
            assert!((sum - 1.0).abs() < 1e-6);
            // 1 − cos(π/20) and 1/10.
            let first = if t_scheduler == TimeSchedule::Cosine {
                0.012_311_66
            } else {
                0.1
            };
            assert!((schedule.dt[0] - first).abs() < 1e-7);
        }
    }
}
