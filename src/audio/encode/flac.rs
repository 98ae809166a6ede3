//! 16-bit mono FLAC.

use flacenc::bitsink::ByteSink;
use flacenc::component::{BitRepr, StreamInfo};
use flacenc::config;
use flacenc::error::{Verified, Verify};
use flacenc::source::{Fill, FrameBuf, MemSource};

use super::{Format, pcm16};
use crate::audio::AudioError;

const BITS: usize = 16;
/// Samples of a frame, the last one excepted.
const BLOCK: usize = 4096;

fn configuration() -> Result<Verified<config::Encoder>, AudioError> {
    config::Encoder::default()
        .into_verified()
        .map_err(|(_, e)| Format::Flac.error(e))
}

pub(super) fn encode(samples: &[f32], rate_hz: u32) -> Result<Vec<u8>, AudioError> {
    let failed = |e: &dyn std::fmt::Display| Format::Flac.error(e);
    let pcm: Vec<i32> = samples.iter().map(|&x| i32::from(pcm16(x))).collect();
    let source = MemSource::from_samples(&pcm, 1, BITS, rate_hz as usize);
    let mut stream = flacenc::encode_with_fixed_block_size(&configuration()?, source, BLOCK)
        .map_err(|e| failed(&e))?;
    // The bounds of the block size leave the last block out (RFC 9639, section 8.2); readers that see them differ take
    // the stream for one of variable blocks, and refuse it.
    stream
        .stream_info_mut()
        .set_block_sizes(BLOCK, BLOCK)
        .map_err(|e| failed(&e))?;
    let mut sink = ByteSink::new();
    stream.write(&mut sink).map_err(|e| failed(&e))?;
    Ok(sink.as_slice().to_vec())
}

/// Frames as they are made, behind a header that leaves the length and the checksum open.
pub(super) struct Stream {
    config: Verified<config::Encoder>,
    info: StreamInfo,
    header: Vec<u8>,
    pending: Vec<i32>,
    frames: usize,
}

impl Stream {
    pub(super) fn new(rate_hz: u32) -> Result<Self, AudioError> {
        let mut info =
            StreamInfo::new(rate_hz as usize, 1, BITS).map_err(|e| Format::Flac.error(e))?;
        info.set_block_sizes(BLOCK, BLOCK)
            .map_err(|e| Format::Flac.error(e))?;
        Ok(Self {
            config: configuration()?,
            header: stream_header(rate_hz),
            info,
            pending: Vec::new(),
            frames: 0,
        })
    }

    pub(super) fn push(&mut self, samples: &[f32]) -> Result<Vec<u8>, AudioError> {
        self.pending
            .extend(samples.iter().map(|&x| i32::from(pcm16(x))));
        let mut out = std::mem::take(&mut self.header);
        let whole = self.pending.len() / BLOCK * BLOCK;
        let ready: Vec<i32> = self.pending.drain(..whole).collect();
        for block in ready.chunks_exact(BLOCK) {
            out.extend(self.frame(block)?);
        }
        Ok(out)
    }

    pub(super) fn finish(mut self) -> Result<Vec<u8>, AudioError> {
        let mut out = std::mem::take(&mut self.header);
        let tail = std::mem::take(&mut self.pending);
        if !tail.is_empty() {
            out.extend(self.frame(&tail)?);
        }
        Ok(out)
    }

    fn frame(&mut self, block: &[i32]) -> Result<Vec<u8>, AudioError> {
        let failed = |e: &dyn std::fmt::Display| Format::Flac.error(e);
        let mut buffer = FrameBuf::with_size(1, BLOCK).map_err(|e| failed(&e))?;
        buffer.fill_interleaved(block).map_err(|e| failed(&e))?;
        let frame =
            flacenc::encode_fixed_size_frame(&self.config, &buffer, self.frames, &self.info)
                .map_err(|e| failed(&e))?;
        self.frames += 1;
        let mut sink = ByteSink::new();
        frame.write(&mut sink).map_err(|e| failed(&e))?;
        Ok(sink.as_slice().to_vec())
    }
}

/// `fLaC` and a STREAMINFO block (RFC 9639, section 8.2) with the frame sizes, the length and the MD5 unknown (zero).
fn stream_header(rate_hz: u32) -> Vec<u8> {
    const LAST_BLOCK_STREAMINFO: u8 = 0x80;
    let mut out = b"fLaC".to_vec();
    out.extend([LAST_BLOCK_STREAMINFO, 0, 0, 34]);
    let block = (BLOCK as u16).to_be_bytes();
    out.extend(block);
    out.extend(block);
    out.extend([0; 6]);
    // 20 bits of rate, 3 of channels − 1, 5 of bits − 1, 36 of total samples.
    let packed = u64::from(rate_hz) << 44 | (BITS as u64 - 1) << 36;
    out.extend(packed.to_be_bytes());
    out.extend([0; 16]);
    out
}
