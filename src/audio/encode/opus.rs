//! Opus in Ogg (RFC 7845).

use ogg::{PacketWriteEndInfo, PacketWriter};
use opus_rs::{Application, OpusEncoder};

use super::{Format, clipped};
use crate::audio::{AudioError, resample};

/// Bit rate of mono speech.
const BITS_PER_SECOND: i32 = 64_000;
/// Granule positions count at 48 kHz, whatever the rate of the samples.
const GRANULE_HZ: u32 = 48_000;
/// The encoder looks ahead 6.5 ms: 4 ms of delay compensation and 2.5 ms of overlap.
const PRE_SKIP: u32 = GRANULE_HZ * 65 / 10_000;
/// Rates that Opus codes as they are.
const RATES_HZ: [u32; 5] = [8_000, 12_000, 16_000, 24_000, 48_000];
const PACKET_MS: u32 = 20;
/// Packets of a page: one second, so that a stream flows.
const PAGE_PACKETS: usize = 50;
const MAX_PACKET_BYTES: usize = 1276;
/// Any number identifies the one logical stream of a file.
const SERIAL: u32 = 0x436f_7379;

/// Whole file. Rates that Opus does not know are resampled to 48 kHz.
pub(super) fn encode(samples: &[f32], rate_hz: u32) -> Result<Vec<u8>, AudioError> {
    if !RATES_HZ.contains(&rate_hz) {
        return encode(&resample(samples, rate_hz, GRANULE_HZ), GRANULE_HZ);
    }
    let mut stream = Stream::new(rate_hz)?;
    let mut out = stream.push(samples)?;
    out.extend(stream.finish()?);
    Ok(out)
}

/// Packets as they are made, in pages of a second.
pub(super) struct Stream {
    encoder: OpusEncoder,
    writer: PacketWriter<'static, Vec<u8>>,
    rate_hz: u32,
    pending: Vec<f32>,
    /// Samples pushed so far, at the stream's rate.
    pushed: u64,
    /// Packets coded so far.
    packets: u64,
    /// The newest packet is held back: the last one must say that it is the last.
    held: Option<(Vec<u8>, u64)>,
    page_packets: usize,
}

impl Stream {
    pub(super) fn new(rate_hz: u32) -> Result<Self, AudioError> {
        let mut encoder = OpusEncoder::new(rate_hz as i32, 1, Application::Audio)
            .map_err(|e| Format::Opus.error(format!("{e} ({rate_hz} Hz)")))?;
        encoder.bitrate_bps = BITS_PER_SECOND;
        let mut writer = PacketWriter::new(Vec::new());
        for header in [head(rate_hz), tags()] {
            writer
                .write_packet(header, SERIAL, PacketWriteEndInfo::EndPage, 0)
                .map_err(|e| Format::Opus.error(e))?;
        }
        Ok(Self {
            encoder,
            writer,
            rate_hz,
            pending: Vec::new(),
            pushed: 0,
            packets: 0,
            held: None,
            page_packets: 0,
        })
    }

    fn packet_samples(&self) -> usize {
        (self.rate_hz * PACKET_MS / 1000) as usize
    }

    pub(super) fn push(&mut self, samples: &[f32]) -> Result<Vec<u8>, AudioError> {
        self.pending.extend(clipped(samples));
        self.pushed += samples.len() as u64;
        self.code_pending()?;
        Ok(std::mem::take(self.writer.inner_mut()))
    }

    fn code_pending(&mut self) -> Result<(), AudioError> {
        let size = self.packet_samples();
        let whole = self.pending.len() / size * size;
        let ready: Vec<f32> = self.pending.drain(..whole).collect();
        for frame in ready.chunks_exact(size) {
            self.code(frame)?;
        }
        Ok(())
    }

    fn code(&mut self, frame: &[f32]) -> Result<(), AudioError> {
        let mut packet = vec![0; MAX_PACKET_BYTES];
        let bytes = self
            .encoder
            .encode(frame, frame.len(), &mut packet)
            .map_err(|e| Format::Opus.error(e))?;
        packet.truncate(bytes);
        self.packets += 1;
        let granule = self.packets * u64::from(GRANULE_HZ * PACKET_MS / 1000);
        if let Some((packet, granule)) = self.held.replace((packet, granule)) {
            self.page_packets += 1;
            let end = if self.page_packets.is_multiple_of(PAGE_PACKETS) {
                PacketWriteEndInfo::EndPage
            } else {
                PacketWriteEndInfo::NormalPacket
            };
            self.write(packet, granule, end)?;
        }
        Ok(())
    }

    fn write(
        &mut self,
        packet: Vec<u8>,
        granule: u64,
        end: PacketWriteEndInfo,
    ) -> Result<(), AudioError> {
        self.writer
            .write_packet(packet, SERIAL, end, granule)
            .map_err(|e| Format::Opus.error(e))
    }

    /// The samples inside the encoder come out behind silence, and the last granule position cuts that off again.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, AudioError> {
        let size = self.packet_samples() as u64;
        let length = self.pushed * u64::from(GRANULE_HZ / self.rate_hz) + u64::from(PRE_SKIP);
        let packets = length.div_ceil(u64::from(GRANULE_HZ * PACKET_MS / 1000));
        let missing = (packets - self.packets) * size;
        self.pending.resize(missing as usize, 0.0);
        self.code_pending()?;
        if let Some((packet, _)) = self.held.take() {
            self.write(packet, length, PacketWriteEndInfo::EndStream)?;
        }
        Ok(std::mem::take(self.writer.inner_mut()))
    }
}

fn head(rate_hz: u32) -> Vec<u8> {
    const VERSION: u8 = 1;
    const CHANNELS: u8 = 1;
    let mut out = b"OpusHead".to_vec();
    out.extend([VERSION, CHANNELS]);
    out.extend((PRE_SKIP as u16).to_le_bytes());
    out.extend(rate_hz.to_le_bytes());
    // No gain, mapping family 0.
    out.extend([0, 0, 0]);
    out
}

fn tags() -> Vec<u8> {
    let vendor = concat!("cosyvoice ", env!("CARGO_PKG_VERSION"));
    let mut out = b"OpusTags".to_vec();
    out.extend((vendor.len() as u32).to_le_bytes());
    out.extend(vendor.as_bytes());
    out.extend(0u32.to_le_bytes());
    out
}
