//! The reads of memory in x86-64 code.

use iced_x86::{
    Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, OpAccess,
    OpKind, Register,
};

use super::Read;

/// A register that holds an argument plus a constant.
type Held = (Register, usize, i64);

/// The reads through the arguments on the path where no branch is taken, up to
/// the first return or jump.
pub(super) fn argument_reads(code: &[u8]) -> Vec<Read> {
    // System V: the first two arguments.
    let mut held: Vec<Held> = vec![(Register::RDI, 0, 0), (Register::RSI, 1, 0)];
    let find = |held: &[Held], register| held.iter().copied().find(|h| h.0 == register);
    let mut info = InstructionInfoFactory::new();
    let mut reads = Vec::new();
    for (index, instruction) in Decoder::new(64, code, DecoderOptions::NONE)
        .iter()
        .enumerate()
    {
        match instruction.flow_control() {
            FlowControl::Next | FlowControl::ConditionalBranch => {}
            FlowControl::Call | FlowControl::IndirectCall => {
                // The tracer's call at the entry, after endbr64, preserves all registers.
                if index > 1 {
                    held.retain(|h| is_callee_saved(h.0));
                }
                continue;
            }
            _ => break,
        }
        let info = info.info(&instruction);
        for memory in info.used_memory() {
            let reads_it = matches!(memory.access(), OpAccess::Read | OpAccess::ReadWrite);
            if reads_it
                && memory.index() == Register::None
                && let Some((_, argument, offset)) = find(&held, memory.base())
            {
                let displacement = memory.displacement() as i64;
                reads.push(Read {
                    argument,
                    offset: offset.wrapping_add(displacement),
                });
            }
        }
        let result = moved(&instruction).and_then(|(to, from, by)| {
            let (_, argument, offset) = find(&held, from)?;
            Some((to, argument, offset.wrapping_add(by)))
        });
        for register in info.used_registers() {
            let writes = matches!(
                register.access(),
                OpAccess::Write
                    | OpAccess::CondWrite
                    | OpAccess::ReadWrite
                    | OpAccess::ReadCondWrite
            );
            if writes {
                held.retain(|h| h.0 != register.register().full_register());
            }
        }
        held.extend(result);
    }
    reads
}

/// `(to, from, by)` of an instruction that leaves `from + by` in `to`.
fn moved(instruction: &Instruction) -> Option<(Register, Register, i64)> {
    let to = instruction.op0_register();
    match instruction.code() {
        Code::Mov_r64_rm64 | Code::Mov_rm64_r64
            if instruction.op0_kind() == OpKind::Register
                && instruction.op1_kind() == OpKind::Register =>
        {
            Some((to, instruction.op1_register(), 0))
        }
        Code::Lea_r64_m if instruction.memory_index() == Register::None => {
            let displacement = instruction.memory_displacement64() as i64;
            Some((to, instruction.memory_base(), displacement))
        }
        Code::Add_rm64_imm8 | Code::Add_rm64_imm32 | Code::Add_RAX_imm32
            if instruction.op0_kind() == OpKind::Register =>
        {
            Some((to, to, instruction.immediate(1) as i64))
        }
        _ => None,
    }
}

fn is_callee_saved(register: Register) -> bool {
    use Register::{R12, R13, R14, R15, RBP, RBX};
    matches!(register, RBX | RBP | R12 | R13 | R14 | R15)
}
