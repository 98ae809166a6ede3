//! Tile registers (Intel AMX): what a kernel does with them, by the CPU's instructions and, in tests, by a model of them.
//!
//! Eight registers of up to 16 rows of 64 bytes. The instructions are written in assembly: their intrinsics are not stable in Rust.
//! Source of their meaning: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18, and volume 2.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows of a register.
pub(super) const ROWS: usize = 16;
/// Words of 32 bits in a row of a register: f32, integers, pairs of bf16 or fours of int8.
pub(super) const LANES: usize = 16;

/// What the registers hold, by number: sums of two blocks of rows and two panels (0 to 3), the inputs of both blocks (4, 5), two panels (6, 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Rows of both blocks, 1 to 16.
    pub(crate) rows: [usize; 2],
    /// Words of the depth that one step takes, 1 to 16.
    pub(crate) words: usize,
}

impl Shape {
    /// (rows, bytes of a row) of register `tile`.
    fn of(&self, tile: usize) -> (usize, usize) {
        match tile {
            0 | 1 => (self.rows[0], 4 * LANES),
            2 | 3 => (self.rows[1], 4 * LANES),
            4 | 5 => (self.rows[tile - 4], 4 * self.words),
            _ => (self.words, 4 * LANES),
        }
    }

    /// The operand of `ldtilecfg`: palette 1, bytes of a row as 16-bit words from byte 16 on, rows as bytes from byte 48 on.
    fn config(&self) -> [u8; 64] {
        let mut config = [0; 64];
        config[0] = 1;
        for tile in 0..8 {
            let (rows, bytes) = self.of(tile);
            config[16 + 2 * tile] = bytes as u8;
            config[48 + tile] = rows as u8;
        }
        config
    }
}

/// Registers of one thread.
pub(crate) trait Tiles {
    /// Sets the shapes; what the registers held is lost.
    fn configure(&mut self, shape: Shape);

    /// Register `T` from rows that begin `stride` bytes apart at `p`.
    ///
    /// # Safety
    /// All rows of the register's shape must be readable there.
    unsafe fn load<const T: usize>(&mut self, p: *const u8, stride: usize);

    /// The reverse.
    ///
    /// # Safety
    /// All rows of the register's shape must be writable there.
    unsafe fn store<const T: usize>(&mut self, p: *mut u8, stride: usize);

    /// Zeroes register `T`.
    fn zero<const T: usize>(&mut self);

    /// `C += A B` of pairs of bf16 (`tdpbf16ps`).
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self);

    /// `C += A B` of fours of bytes, those of A with sign, those of B without (`tdpbsud`), in integers.
    fn dot_bytes<const C: usize, const A: usize, const B: usize>(&mut self);
}

/// The registers of this CPU, of which a thread has one at a time. Shapes are set only where they change, which takes as long as ten products; dropped, it
/// leaves the registers to others: the system need not keep them any longer.
pub(crate) struct Hardware {
    shape: Option<Shape>,
    /// They are a thread's.
    _thread: PhantomData<*const ()>,
}

impl Hardware {
    /// When the CPU has them for bf16 and int8 and the system lets this process use them, which it has to be asked for.
    pub(crate) fn detect() -> Option<Self> {
        static USABLE: OnceLock<bool> = OnceLock::new();
        USABLE
            .get_or_init(|| {
                const BF16: u32 = 1 << 22;
                const TILES: u32 = 1 << 24;
                const INT8: u32 = 1 << 25;
                let has = __cpuid_count(7, 0).edx;
                let all = BF16 | TILES | INT8;
                has & all == all && permitted()
            })
            .then_some(Self {
                shape: None,
                _thread: PhantomData,
            })
    }
}

/// Asks Linux for the tile registers (`arch_prctl(2)`, kernel documentation `arch/x86/xstate.rst`); it refuses where it does not know them.
fn permitted() -> bool {
    #[cfg(target_os = "linux")]
    {
        const REQUEST_PERMISSION: libc::c_long = 0x1023;
        const TILE_DATA: libc::c_long = 18;
        // SAFETY: the call takes two numbers and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
    }
    #[cfg(not(target_os = "linux"))]
    false
}

// The compiler is never told that there are tile registers, so it keeps nothing in them between these.
impl Tiles for Hardware {
    #[inline(always)]
    fn configure(&mut self, shape: Shape) {
        if self.shape == Some(shape) {
            return;
        }
        self.shape = Some(shape);
        let config = shape.config();
        // SAFETY: `Hardware` exists only where the instructions do; the shape is within palette 1.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) config.as_ptr(), options(nostack, readonly, preserves_flags))
        }
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, p: *const u8, stride: usize) {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!("tileloadd tmm{t}, [{p} + {s}*1]", t = const T, p = in(reg) p, s = in(reg) stride,
                options(nostack, readonly, preserves_flags));
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, p: *mut u8, stride: usize) {
        // SAFETY: by the caller's promise.
        unsafe {
            asm!("tilestored [{p} + {s}*1], tmm{t}", t = const T, p = in(reg) p, s = in(reg) stride,
                options(nostack, preserves_flags));
        }
    }

    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        // SAFETY: registers alone.
        unsafe { asm!("tilezero tmm{t}", t = const T, options(nostack, nomem, preserves_flags)) }
    }

    #[inline(always)]
    fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: registers alone.
        unsafe {
            asm!("tdpbf16ps tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, nomem, preserves_flags));
        }
    }

    #[inline(always)]
    fn dot_bytes<const C: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: registers alone.
        unsafe {
            asm!("tdpbsud tmm{c}, tmm{a}, tmm{b}", c = const C, a = const A, b = const B,
                options(nostack, nomem, preserves_flags));
        }
    }
}

impl Drop for Hardware {
    fn drop(&mut self) {
        if self.shape.is_some() {
            // SAFETY: registers alone.
            unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
        }
    }
}

/// The instructions' meaning in plain code, for machines that lack them.
#[cfg(test)]
pub(super) struct Model {
    shape: Option<Shape>,
    registers: [[[u8; 4 * LANES]; ROWS]; 8],
}

#[cfg(test)]
impl Model {
    pub(super) fn new() -> Self {
        Self {
            shape: None,
            registers: [[[0; 4 * LANES]; ROWS]; 8],
        }
    }

    /// (rows, words of the depth) of a product, whose shapes have to fit.
    fn product_shape(&self, c: usize, a: usize, b: usize) -> (usize, usize) {
        let shape = self.shape.expect("configured");
        let ((rows, _), (inputs, bytes), (words, _)) = (shape.of(c), shape.of(a), shape.of(b));
        let fitting = (rows, bytes / 4) == (inputs, words);
        assert!(fitting, "shapes that do not fit fault");
        (rows, words)
    }

    /// Word `lane` of a row, as two bf16 widened to f32, subnormal ones as zero.
    fn pair(&self, tile: usize, row: usize, lane: usize) -> [f32; 2] {
        let word = &self.registers[tile][row][4 * lane..][..4];
        [[word[0], word[1]], [word[2], word[3]]]
            .map(|half| flush(f32::from_bits(u32::from(u16::from_le_bytes(half)) << 16)))
    }
}

/// Subnormal values are zero to `tdpbf16ps`, on the way in and on the way out.
#[cfg(test)]
fn flush(x: f32) -> f32 {
    if x.is_subnormal() {
        0f32.copysign(x)
    } else {
        x
    }
}

#[cfg(test)]
impl Tiles for Model {
    fn configure(&mut self, shape: Shape) {
        let allowed = 1..=ROWS;
        assert!(shape.rows.iter().all(|r| allowed.contains(r)) && allowed.contains(&shape.words));
        *self = Self::new();
        self.shape = Some(shape);
    }

    unsafe fn load<const T: usize>(&mut self, p: *const u8, stride: usize) {
        let (rows, bytes) = self.shape.expect("configured").of(T);
        self.registers[T] = [[0; 4 * LANES]; ROWS];
        for row in 0..rows {
            // SAFETY: by the caller's promise.
            let from = unsafe { std::slice::from_raw_parts(p.add(row * stride), bytes) };
            self.registers[T][row][..bytes].copy_from_slice(from);
        }
    }

    unsafe fn store<const T: usize>(&mut self, p: *mut u8, stride: usize) {
        let (rows, bytes) = self.shape.expect("configured").of(T);
        for row in 0..rows {
            // SAFETY: by the caller's promise.
            let to = unsafe { std::slice::from_raw_parts_mut(p.add(row * stride), bytes) };
            to.copy_from_slice(&self.registers[T][row][..bytes]);
        }
    }

    fn zero<const T: usize>(&mut self) {
        self.registers[T] = [[0; 4 * LANES]; ROWS];
    }

    fn dot<const C: usize, const A: usize, const B: usize>(&mut self) {
        let (rows, words) = self.product_shape(C, A, B);
        for row in 0..rows {
            let mut sums = [[0f32; 2]; LANES];
            for k in 0..words {
                let a = self.pair(A, row, k);
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let b = self.pair(B, k, lane);
                    for i in 0..2 {
                        sum[i] = flush(a[i].mul_add(b[i], sum[i]));
                    }
                }
            }
            for (lane, [even, odd]) in sums.into_iter().enumerate() {
                let place = &mut self.registers[C][row][4 * lane..][..4];
                let old = flush(f32::from_le_bytes([place[0], place[1], place[2], place[3]]));
                place.copy_from_slice(&flush(old + flush(even + odd)).to_le_bytes());
            }
        }
    }

    fn dot_bytes<const C: usize, const A: usize, const B: usize>(&mut self) {
        let (rows, words) = self.product_shape(C, A, B);
        for row in 0..rows {
            for lane in 0..LANES {
                let mut sum: i32 = (0..4 * words)
                    .map(|k| {
                        let x = self.registers[A][row][k] as i8;
                        i32::from(x) * i32::from(self.registers[B][k / 4][4 * lane + k % 4])
                    })
                    .sum();
                let place = &mut self.registers[C][row][4 * lane..][..4];
                sum =
                    sum.wrapping_add(i32::from_le_bytes([place[0], place[1], place[2], place[3]]));
                place.copy_from_slice(&sum.to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_written_as_the_manual_says() {
        let shape = Shape {
            rows: [16, 5],
            words: 3,
        };
        let config = shape.config();
        assert_eq!(
            config[..16],
            [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        );
        let bytes: Vec<u16> = config[16..32]
            .chunks(2)
            .map(|b| u16::from_le_bytes([b[0], b[1]]))
            .collect();
        assert_eq!(bytes, [64, 64, 64, 64, 12, 12, 64, 64]);
        assert_eq!(config[32..48], [0; 16]);
        assert_eq!(
            config[48..],
            [16, 16, 5, 5, 16, 5, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn the_model_multiplies_pairs_of_bf16() {
        let mut model = Model::new();
        model.configure(Shape {
            rows: [1, 1],
            words: 1,
        });
        let a = [0x3f80_u16, 0x4000]; // 1, 2
        let mut b = [0u16; 2 * LANES];
        (b[0], b[1], b[2]) = (0x4040, 0x4080, 0x0001); // 3, 4, a subnormal
        let mut sums = [10f32; LANES];
        // SAFETY: one row each.
        unsafe {
            model.load::<0>(sums.as_ptr().cast(), 64);
            model.load::<4>(a.as_ptr().cast(), 4);
            model.load::<6>(b.as_ptr().cast(), 64);
            model.dot::<0, 4, 6>();
            model.store::<0>(sums.as_mut_ptr().cast(), 64);
        }
        assert_eq!(sums[..3], [21.0, 10.0, 10.0]);
    }
}
