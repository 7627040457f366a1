//! The eBPF programs: loaded with the running kernel's layout, attached by name.

use std::collections::BTreeMap;
use std::thread;

use aya::Ebpf;
use aya::maps::{Map, MapError};
use aya::programs::kprobe::KProbeLink;
use aya::programs::{KProbe, Program, ProgramError, RawTracePoint};
use nlmfo_common::layout::{FL_SPAN_MAX, Layout};

use tracing::debug;

use super::error::ObserveError;
use super::loader::loader;

/// For `map_err`.
pub(super) fn map_error(map: &'static str) -> impl Fn(MapError) -> ObserveError {
    move |source| ObserveError::Map {
        map,
        source: Box::new(source),
    }
}

/// The ELF, built by `build.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/nlmfo-ebpf"));

/// A probe on a kernel function.
pub(super) struct Probe {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Name of the kernel function.
    pub function: &'static str,
}

/// Each program with the kernel function that it is attached to: those of snapshots first, then of
/// counters, of the client book, of NFSv4, and the optional ones of reclaims.
pub fn probes() -> impl Iterator<Item = (&'static str, &'static str)> {
    (super::snapshot::PROBES.iter())
        .chain(super::counters::PROBES)
        .chain(super::monitor::PROBES)
        .chain(super::states::take::PROBES)
        .chain(super::counters::nfs4::PROBES)
        .chain(super::unlocks::probes())
        .map(|probe| (probe.program, probe.function))
}

/// The kernel functions that NFSv3 needs, in that order.
pub fn probed_functions() -> impl Iterator<Item = &'static str> {
    (probes().map(|(_, function)| function)).filter(|function| {
        let optional = super::unlocks::probes().map(|probe| probe.function);
        let mut not_needed = state_functions().chain(optional);
        !not_needed.any(|other| other == *function)
    })
}

/// The kernel functions that NFSv4 needs.
pub fn state_functions() -> impl Iterator<Item = &'static str> {
    (super::states::take::PROBES.iter())
        .chain(super::counters::nfs4::PROBES)
        .map(|probe| probe.function)
}

/// The programs in the kernel. Dropping it detaches them all.
pub struct Programs {
    pub(super) ebpf: Ebpf,
    pub(super) layout: Layout,
    probes: Vec<KProbeLink>,
}

impl Programs {
    /// Loads the object for the running kernel's layout; attaches nothing.
    ///
    /// # Errors
    /// If the kernel refuses the maps, or a struct of it exceeds what the programs copy.
    pub fn load(layout: &Layout) -> Result<Self, ObserveError> {
        if layout.fl_span as usize > FL_SPAN_MAX {
            return Err(ObserveError::FileLockTooLarge(layout.fl_span));
        }
        let ebpf = loader()
            .override_global("LAYOUT", layout, true)
            .load(OBJECT)
            .map_err(|error| ObserveError::Load(Box::new(error)))?;
        Ok(Programs {
            ebpf,
            layout: *layout,
            probes: Vec::new(),
        })
    }

    /// Passes every program to the kernel's verifier and attaches none. Returns, by name, whether the
    /// kernel accepted it.
    pub fn verify(&mut self) -> BTreeMap<String, Result<(), ProgramError>> {
        (self.ebpf.programs_mut())
            .map(|(name, program)| {
                let loaded = match program {
                    Program::KProbe(program) => program.load(),
                    Program::RawTracePoint(program) => program.load(),
                    _ => Err(ProgramError::UnexpectedProgramType),
                };
                (name.to_owned(), loaded)
            })
            .collect()
    }

    /// Takes the map of that name.
    pub(super) fn map<M>(&mut self, name: &'static str) -> Result<M, ObserveError>
    where
        M: TryFrom<Map, Error = MapError>,
    {
        let map = self.ebpf.take_map(name);
        M::try_from(map.ok_or(ObserveError::Foreign(name))?).map_err(map_error(name))
    }

    /// Loads a probe and attaches it; it stays until `self` is dropped.
    pub(super) fn attach(&mut self, probe: &Probe) -> Result<(), ObserveError> {
        let kprobe: &mut KProbe = self.program(probe.program)?;
        kprobe.load().map_err(|source| ObserveError::Refused {
            program: probe.program,
            source: Box::new(source),
        })?;
        let attached = kprobe
            .attach(probe.function, 0)
            .and_then(|link| kprobe.take_link(link));
        let link = attached.map_err(|source| ObserveError::Attach {
            program: probe.program,
            function: probe.function,
            source: Box::new(source),
        })?;
        self.probes.push(link);
        debug!(probe.program, probe.function, "attached");
        Ok(())
    }

    /// Loads a program that nlmfo runs itself.
    pub(super) fn load_runnable(&mut self, program: &'static str) -> Result<(), ObserveError> {
        let runnable: &mut RawTracePoint = self.program(program)?;
        runnable.load().map_err(|source| ObserveError::Refused {
            program,
            source: Box::new(source),
        })
    }

    /// Runs a program of [`Programs::load_runnable`] on this thread.
    pub(super) fn run(&self, program: &'static str, args: &[u64]) -> Result<(), ObserveError> {
        use aya::programs::{RawTracePointRunOptions, TestRun};

        let runnable: &RawTracePoint = (self.ebpf.program(program))
            .and_then(|program| program.try_into().ok())
            .ok_or(ObserveError::Foreign(program))?;
        let mut options = RawTracePointRunOptions::new();
        options.args[..args.len()].copy_from_slice(args);
        runnable
            .test_run(options)
            .map_err(|source| ObserveError::Run {
                program,
                source: Box::new(source),
            })?;
        Ok(())
    }

    fn program<'a, P>(&'a mut self, name: &'static str) -> Result<&'a mut P, ObserveError>
    where
        &'a mut P: TryFrom<&'a mut Program>,
    {
        (self.ebpf.program_mut(name))
            .and_then(|program| program.try_into().ok())
            .ok_or(ObserveError::Foreign(name))
    }
}

/// For each probe, the kernel waits until no processor runs it: 60 ms on 6.1 in the lab. So they are
/// detached side by side.
impl Drop for Programs {
    fn drop(&mut self) {
        thread::scope(|scope| {
            for link in self.probes.drain(..) {
                // Without a thread, it is detached here.
                let _ = thread::Builder::new().spawn_scoped(scope, move || drop(link));
            }
        });
    }
}

/// `BPF_PROG_TYPE_*` of include/uapi/linux/bpf.h: KPROBE, `SCHED_CLS`, TRACEPOINT,
/// `RAW_TRACEPOINT`, TRACING and SYSCALL.
const OUR_TYPES: &[u32] = &[2, 3, 5, 17, 26, 31];

/// The eBPF programs in the kernel of the types that nlmfo uses, by ID. Programs of other types, such
/// as systemd's for its cgroups, come and go.
pub fn loaded() -> BTreeMap<u32, String> {
    aya::programs::loaded_programs()
        .filter_map(|program| {
            let program = program.ok()?;
            let is_ours = OUR_TYPES.contains(&(program.program_type() as u32));
            let name = program.name_as_str().unwrap_or("?").to_owned();
            is_ours.then(|| (program.id(), name))
        })
        .collect()
}
