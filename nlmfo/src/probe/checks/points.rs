//! The parts of the kernel that nlmfo itself uses.

use anyhow::{Result, bail};

use super::{Check, Done};
use crate::grace::gate;
use crate::kernel::btf::KernelBtf;
use crate::kernel::preflight::{Capability, Facts};
use crate::kernel::symbols::Symbols;
use crate::observe::programs::{Programs, probed_functions};
use crate::probe::contract;
use crate::probe::fixture::Fixture;

pub fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "probe-points",
            "every function that nlmfo probes exists, with the expected prototype and fields",
            points,
        ),
        Check::new(
            "verifier",
            "the kernel's verifier accepts every eBPF program of nlmfo",
            verifier,
        ),
    ]
}

fn points(_: &mut Fixture) -> Result<Done> {
    let functions: Vec<&str> = probed_functions().chain(gate::probed_functions()).collect();
    let facts = Facts::gather(&functions);
    let mut wrong: Vec<String> = (facts.functions.iter())
        .filter_map(|(name, capability)| match capability {
            Capability::Available => None,
            Capability::Missing { reason, .. } => Some(format!("{name}: {reason}")),
            Capability::Unknown { because } => Some(format!("{name}: unknown without {because}")),
        })
        .collect();
    let btf = KernelBtf::load(&contract::MODULES)?;
    let symbols = Symbols::load(contract::symbols())?;
    let checked = contract::check(&contract::all()?, &btf, &symbols, &facts.release);
    wrong.extend(checked.mismatches.iter().map(ToString::to_string));
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(Done::Shown)
}

fn verifier(_: &mut Fixture) -> Result<Done> {
    let layout = crate::kernel::layout::load()?;
    let refused: Vec<String> = Programs::load(&layout)?
        .verify()
        .into_iter()
        .filter_map(|(name, verdict)| Some(format!("{name}: {}", verdict.err()?)))
        .collect();
    if !refused.is_empty() {
        bail!("{}", refused.join("; "));
    }
    Ok(Done::Shown)
}
