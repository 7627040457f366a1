//! The reads of memory in arm64 code. Knows only the kinds of instructions that such a function begins
//! with; any other one ends the search.

use super::Read;

/// What general registers hold: an argument plus a constant.
#[derive(Default)]
struct Held([Option<(usize, i64)>; 31]);

impl Held {
    /// `None` of register 31, which is the stack or zero.
    fn get(&self, register: u32) -> Option<(usize, i64)> {
        *self.0.get(register as usize)?
    }

    fn set(&mut self, register: u32, value: Option<(usize, i64)>) {
        if let Some(place) = self.0.get_mut(register as usize) {
            *place = value;
        }
    }

    fn plus(&self, register: u32, by: i64) -> Option<(usize, i64)> {
        let (argument, offset) = self.get(register)?;
        Some((argument, offset.wrapping_add(by)))
    }
}

/// The reads through the arguments on the path where no branch is taken, up to the first return,
/// jump or unknown instruction.
pub(super) fn argument_reads(code: &[u8]) -> Vec<Read> {
    let mut held = Held::default();
    held.set(0, Some((0, 0)));
    held.set(1, Some((1, 0)));
    let mut reads = Vec::new();
    let words = code.chunks_exact(4);
    for word in words.map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])) {
        if step(word, &mut held, &mut reads).is_none() {
            break;
        }
    }
    reads
}

/// Bits of an instruction, as the Arm Architecture Reference Manual numbers them.
fn bits(word: u32, high: u32, low: u32) -> u32 {
    word >> low & ((1 << (high - low + 1)) - 1)
}

/// The same as a number with a sign.
fn signed(word: u32, high: u32, low: u32) -> i64 {
    let value = i64::from(bits(word, high, low));
    let sign = 1 << (high - low);
    (value ^ sign) - sign
}

/// Follows one instruction; `None` if the search ends with it.
fn step(word: u32, held: &mut Held, reads: &mut Vec<Read>) -> Option<()> {
    let is = |mask: u32, value: u32| word & mask == value;
    let (to, base) = (bits(word, 4, 0), bits(word, 9, 5));
    let is_64_bits = bits(word, 31, 31) == 1;
    let mut read = |held: &Held, offset: i64| {
        let place = held.plus(base, offset);
        reads.extend(place.map(|(argument, offset)| Read { argument, offset }));
    };
    if is(0xffff_f01f, 0xd503_201f) || is_conditional_branch(word) {
        // Hints: nop, bti, paciasp.
    } else if is(0xfc00_0000, 0x9400_0000) {
        // bl: the registers that a function may change.
        (0..=18).chain([30]).for_each(|r| held.set(r, None));
    } else if is(0x7fe0_ffe0, 0x2a00_03e0) {
        // mov
        let from = held.get(bits(word, 20, 16));
        held.set(to, from.filter(|_| is_64_bits));
    } else if is(0x1f80_0000, 0x1100_0000) {
        // add, sub, cmp with a constant
        let by = i64::from(bits(word, 21, 10)) << (12 * bits(word, 22, 22));
        let by = if bits(word, 30, 30) == 1 { -by } else { by };
        let sum = held.plus(base, by).filter(|_| is_64_bits);
        held.set(to, sum);
    } else if is(0x3f00_0000, 0x3900_0000) {
        // ldr, str: base register plus an immediate, scaled by the access size
        let offset = i64::from(bits(word, 21, 10)) << bits(word, 31, 30);
        if loads(word)? {
            read(held, offset);
            held.set(to, None);
        }
    } else if is(0x3f20_0000, 0x3800_0000) {
        // ldr, str: the constant in bytes, perhaps added to the register before or after
        let (offset, after) = match bits(word, 11, 10) {
            0 => (signed(word, 20, 12), false),
            1 => (0, true),
            3 => (signed(word, 20, 12), true),
            _ => return None,
        };
        if loads(word)? {
            read(held, offset);
            held.set(to, None);
        }
        if after {
            held.set(base, None);
        }
    } else if is(0x3e00_0000, 0x2800_0000) {
        // ldp, stp
        let size = 4 << bits(word, 31, 31);
        let offset = match bits(word, 24, 23) {
            1 => 0,
            _ => signed(word, 21, 15) * size,
        };
        if bits(word, 22, 22) == 1 {
            read(held, offset);
            read(held, offset + size);
            held.set(to, None);
            held.set(bits(word, 14, 10), None);
        }
        if bits(word, 23, 23) == 1 {
            held.set(base, None);
        }
    } else if is(0x1f00_0000, 0x0a00_0000)
        || is(0x1f20_0000, 0x0b00_0000)
        || is(0x1f80_0000, 0x1280_0000)
        || is(0x1fe0_0000, 0x1a80_0000)
    {
        // Logic and sums of registers, constants, selects: their results are not addresses.
        held.set(to, None);
    } else {
        return None;
    }
    Some(())
}

/// Whether a load or store of one register loads it; `None` for a prefetch.
fn loads(word: u32) -> Option<bool> {
    let operation = bits(word, 23, 22);
    let is_prefetch = bits(word, 31, 30) == 3 && operation == 2;
    (!is_prefetch).then_some(operation != 0)
}

/// `b.cond`, `cbz`, `cbnz`, `tbz`, `tbnz`.
fn is_conditional_branch(word: u32) -> bool {
    word & 0xff00_0010 == 0x5400_0000 || word & 0x7c00_0000 == 0x3400_0000
}

#[cfg(test)]
mod tests {
    use super::super::{
        Verdict, judge,
        tests::{SRCADDR, bytes},
    };
    use super::*;

    /// The first 64 bytes of `nlmsvc_match_ip` in `lockd.ko` of Debian's
    /// linux-image-*-cloud-arm64 (from 7.2 linux-modules-*), before relocation.
    const BROKEN: [(&str, &str); 3] = [
        ("6.1.176-1", BROKEN_CODE),
        ("6.12.111-1", BROKEN_CODE),
        ("6.18.15-1~bpo13+1", BROKEN_CODE),
    ];
    const BROKEN_CODE: &str = "1f2003d51f2003d53f2303d5fd7bbea9fd030091f35301a9f30300aa22304179\
         000040791f00026bc000005400008052f35341a9fd7bc2a8bf2303d5c0035fd6";
    const FIXED: [(&str, &str); 4] = [
        ("6.1.192-2", FIXED_CODE),
        ("6.12.118-1", FIXED_CODE),
        ("7.2.12-1~bpo13+1", FIXED_CODE),
        ("7.3.4-1~bpo13+1", FIXED_CODE),
    ];
    const FIXED_CODE: &str = "1f2003d51f2003d53f2303d5fd7bbda9e20300aafd030091f30b00f913600291\
         03304179200040791f00036bc000005400008052f30b40f9fd7bc3a8bf2303d5";

    /// As it runs where the tracer keeps the return address, and without pointer signatures:
    /// `mov x9, x30` for the first nop, `str x30, [x18], #8` for `paciasp`.
    fn patched(code: &[u8]) -> Vec<u8> {
        let mut code = code.to_vec();
        code[..4].copy_from_slice(&0xaa1e_03e9_u32.to_le_bytes());
        code[8..12].copy_from_slice(&0xf800_865e_u32.to_le_bytes());
        code
    }

    #[test]
    fn tells_broken_and_fixed_kernels() {
        let cases = BROKEN.map(|case| (case, true)).into_iter();
        for ((kernel, hex), is_broken) in cases.chain(FIXED.map(|case| (case, false))) {
            for code in [bytes(hex), patched(&bytes(hex))] {
                let verdict = judge(&code, argument_reads, SRCADDR);
                let is_right = match is_broken {
                    true => matches!(verdict, Verdict::Broken { .. }),
                    false => matches!(verdict, Verdict::Fixed { .. }),
                };
                assert!(is_right, "{kernel}: {verdict:?}");
            }
        }
    }

    fn reads(words: &[u32]) -> Vec<(usize, i64)> {
        let code: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let reads = argument_reads(&code).into_iter();
        reads.map(|read| (read.argument, read.offset)).collect()
    }

    #[test]
    fn follows_arguments_through_registers_and_calls() {
        // mov x19,x1; bl +0; ldrh w2,[x0]; add x19,x19,#0x98; ldp x3,x4,[x19,#-8];
        // ldur w5,[x19,#-3]; ldr w6,[x19],#4; ldr w6,[x19]; ret; ldr w6,[x19]
        let code = [
            0xaa01_03f3,
            0x9400_0000,
            0x7940_0002,
            0x9102_6273,
            0xa97f_9263,
            0xb85f_d265,
            0xb840_4666,
            0xb940_0266,
            0xd65f_03c0,
            0xb940_0266,
        ];
        assert_eq!(reads(&code), [(1, 144), (1, 152), (1, 149), (1, 152)]);
    }

    #[test]
    fn what_was_overwritten_is_no_argument() {
        // mov w0,#0; ldr w2,[x0]; mov w1,w1; ldr w2,[x1]
        assert!(reads(&[0x5280_0000, 0xb940_0002, 0x2a01_03e1, 0xb940_0022]).is_empty());
        // brk #4 (a kprobe): nothing is known from there on.
        assert!(reads(&[0xd420_0080, 0xb940_0022]).is_empty());
    }
}
