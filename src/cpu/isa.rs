//! Which instruction set the fast paths use, found at run time, and the macro that compiles a loop once per set.

#[cfg(target_arch = "x86_64")]
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::gemm::Hardware;

/// An instruction set that this process may use. Only [`Isa::detect`] makes the higher ones, so having one proves that it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Isa {
    level: Level,
    /// Whether products of bf16 are made of pairs of them: where the CPU does that, and faster than it multiplies f32.
    pairs: bool,
    /// Whether tile registers multiply these, and int8.
    tiles: bool,
    /// Whether few rows are multiplied by one panel of weights after the other.
    #[cfg(target_arch = "x86_64")]
    in_turn: bool,
    /// Whether the CPU loads one operand of 512 bits a cycle and not two.
    #[cfg(target_arch = "x86_64")]
    one_load: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 F, BW, VL and DQ with VNNI (Cascade Lake, Ice Lake, Zen 4, Sapphire Rapids), and all of the level before.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Isa {
    /// No instructions beyond the target's baseline.
    pub const PORTABLE: Self = Self::without_pairs(Level::Portable);

    const fn without_pairs(level: Level) -> Self {
        Self {
            level,
            pairs: false,
            tiles: false,
            #[cfg(target_arch = "x86_64")]
            in_turn: false,
            #[cfg(target_arch = "x86_64")]
            one_load: false,
        }
    }

    /// The best set that this CPU has.
    pub fn detect() -> Self {
        Self::available()[0]
    }

    /// All sets that this CPU has, the best first. What other CPUs are better at is among them, so that tests run it.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.insert(0, Self::without_pairs(Level::Avx2));
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vnni")
            {
                let has_pairs = is_x86_feature_detected!("avx512bf16");
                let without = Self {
                    in_turn: !made_by_intel(),
                    one_load: made_by_intel() && !has_pairs,
                    ..Self::without_pairs(Level::Avx512)
                };
                let pairs = Self {
                    pairs: has_pairs,
                    ..without
                };
                let best_first = match slow_pairs() {
                    true => [without, pairs],
                    false => [pairs, without],
                };
                let others = [
                    Self {
                        in_turn: made_by_intel(),
                        one_load: false,
                        ..pairs
                    },
                    Self {
                        in_turn: false,
                        one_load: !without.one_load,
                        ..without
                    },
                ];
                all.splice(0..0, best_first.into_iter().chain(others));
                // The first two are one where the CPU has no pairs.
                all.dedup();
                if Hardware::detect().is_some() {
                    let tiles = true;
                    all.insert(0, Self { tiles, ..pairs });
                }
            }
        }
        all
    }

    /// Whether products are made of pairs of bf16, activations rounded as well as weights, where weights need not be exact.
    pub fn multiplies_bf16(self) -> bool {
        self.pairs
    }

    /// Whether few rows are multiplied by one panel of weights after the other instead of by several side by side, and many fetch weights into the
    /// second-level cache: where the CPU reads one stream from front to back as fast as memory gives. Zen 4 reads four panels side by side, fetched ahead, at
    /// three quarters of that (`docs/performance.md`); Emerald Rapids reads several faster than one. Bytes do not depend on it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn reads_panels_in_turn(self) -> bool {
        self.in_turn
    }

    /// Whether the CPU loads one operand of 512 bits a cycle and not two, as Ice Lake was measured to (`docs/performance.md`): a broadcast word of the input
    /// must then serve three products, and tiles have up to eight rows by three panels. Intel's others without BF16 (Cascade Lake), which were not measured, are
    /// taken to be like that one. Bytes do not depend on it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn loads_one_operand(self) -> bool {
        self.one_load
    }

    /// Whether many rows of integers are taken word by word, and layers that follow each other block by block of rows: on Intel's CPUs with AVX-512, as was
    /// measured on Ice Lake and on Emerald Rapids (`docs/performance.md`); AMD's, which read panels in turn, were not. Bytes do not depend on it.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn takes_rows_by_word(self) -> bool {
        self.level == Level::Avx512 && !self.in_turn
    }

    /// For matching in the dispatchers.
    pub(crate) fn level(self) -> Level {
        self.level
    }

    /// Whether products of bf16 and of int8 are made in tile registers.
    pub(crate) fn has_tiles(self) -> bool {
        self.tiles
    }

    /// The tile registers, where products are to be made with them.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn tiles(self) -> Option<Hardware> {
        self.tiles.then(Hardware::detect).flatten()
    }

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self.level {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2+fma",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if self.tiles => "avx512+vnni+bf16+amx",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 if self.pairs => "avx512+vnni+bf16",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512+vnni",
        }
    }
}

/// Whether `vdpbf16ps` is slower than two multiply-adds of f32. Emerald Rapids makes half as many multiply-adds with it, AMD's Zen 4 and 5
/// twice as many (`docs/performance.md`); Intel's others, which were not measured, are taken to be like that one. By the vendor and not by
/// a measurement, which could choose otherwise the next time: the bytes of an utterance depend on the choice.
#[cfg(target_arch = "x86_64")]
fn slow_pairs() -> bool {
    made_by_intel()
}

#[cfg(target_arch = "x86_64")]
fn made_by_intel() -> bool {
    static INTEL: OnceLock<bool> = OnceLock::new();
    *INTEL.get_or_init(|| {
        let vendor = std::arch::x86_64::__cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx]
            .map(u32::to_le_bytes)
            .as_flattened()
            == b"GenuineIntel"
    })
}

/// Compiles a function once per instruction set: `fn name<FMA>(args) -> T { body }` becomes `fn name(isa: Isa, args) -> T`. The body sees a
/// constant `FMA`: whether multiply-add is one instruction. Loops in it are left to the compiler's vectoriser.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$fma:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::cpu::isa::Isa, $($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const $fma: bool>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body::<true>($($arg),*)
            }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
            fn avx512($($arg: $ty),*) $(-> $ret)? {
                body::<true>($($arg),*)
            }

            match isa.level() {
                $crate::cpu::isa::Level::Portable => body::<false>($($arg),*),
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Isa` says AVX2 and FMA only where the CPU has them.
                $crate::cpu::isa::Level::Avx2 => unsafe { avx2($($arg),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: `Isa` says AVX-512 only where the CPU has all of these.
                $crate::cpu::isa::Level::Avx512 => unsafe { avx512($($arg),*) },
            }
        }
    };
}
pub(crate) use per_isa;
