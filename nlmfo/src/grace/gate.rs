//! The gate in the kernel: loaded once, pinned, and taken over by later processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;

use aya::Ebpf;
use aya::programs::kprobe::KProbe;
use aya::programs::links::FdLink;
use aya::programs::raw_trace_point::RawTracePoint;
use aya::programs::tc::{SchedClassifier, TcAttachOptions, TcAttachType};
use aya::programs::{LinkOrder, ProbeKind, Program, ProgramError};
use nlmfo_common::gate::GateLayout;
use tracing::{debug, warn};

use super::GraceError;
use super::devices::{Coverage, Device, Netlink, Uncovered};
use super::leftovers;
use super::maps::Maps;
use super::pins::{self, Pins, State};
use super::reload::Carried;
use super::{guard, tc};
use crate::kernel::{gate_layout, lockd};
use crate::observe::host::Transport;
use crate::observe::loader::loader;
use crate::observe::lockd_ports::LockdPorts;

/// The ELF, built by `build.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/nlmfo-gate"));

/// Writes the address of this network namespace's `struct net` where the
/// classifiers find it.
const HERE: &str = "gate_here";

struct Probe {
    program: &'static str,
    function: &'static str,
    kind: ProbeKind,
}

/// The first follows lockd's ports; the others are the audit.
const PROBES: [Probe; 4] = [
    Probe {
        program: "gate_ports",
        function: "svc_register",
        kind: ProbeKind::Entry,
    },
    Probe {
        program: "audit_enter",
        function: "nlmsvc_lock",
        kind: ProbeKind::Entry,
    },
    Probe {
        program: "audit_return",
        function: "nlmsvc_lock",
        kind: ProbeKind::Return,
    },
    Probe {
        program: "audit_granted",
        function: "nlm_async_call",
        kind: ProbeKind::Entry,
    },
];

/// The gate's probes, each with the kernel function that it sits on.
pub(crate) fn probes() -> impl Iterator<Item = (&'static str, &'static str)> {
    PROBES.iter().map(|probe| (probe.program, probe.function))
}

/// The kernel functions alone, in that order.
pub(crate) fn probed_functions() -> impl Iterator<Item = &'static str> {
    probes().map(|(_, function)| function)
}

/// The gate of this network namespace, in force in the kernel. Dropping it changes
/// nothing.
pub struct Gate {
    pins: Pins,
    /// Its pinned maps, open.
    pub maps: Maps,
}

/// Where the gate of [`Gate::load_or_take_over`] came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Loaded,
    /// It was in force already.
    TakenOver,
}

impl Gate {
    /// The gate if it is in force here, whichever process loaded it.
    ///
    /// # Errors
    /// If what is pinned cannot be read.
    pub fn in_force() -> Result<Option<Self>, GraceError> {
        let pins = Pins::here()?;
        Ok(match pins.state()? {
            State::Ready(_) => Some(Gate {
                maps: Maps::open(&pins)?,
                pins,
            }),
            State::Absent | State::Partial => None,
        })
    }

    /// Takes over the gate that is in force, or loads it. It then knows lockd's ports and follows them.
    /// [`Gate::cover_all`] attaches it to devices.
    ///
    /// # Errors
    /// If the kernel refuses a program or map, does not show its layout, or lockd's ports
    /// cannot be read.
    pub async fn load_or_take_over() -> Result<Self, GraceError> {
        let layout = gate_layout::load()?;
        let pins = Pins::here()?;
        // Two gates on one path would undo each other's work.
        for other in Pins::all_versions_here()? {
            if other != pins {
                detach(&other).await?;
            }
        }
        let mut carried = None;
        let origin = match pins.state()? {
            State::Ready(hash) if hash == pins::hash(&layout) => Origin::TakenOver,
            State::Absent => Origin::Loaded,
            state => {
                // A loader died, or lockd was loaded again and is not where it was.
                if let State::Ready(_) = state {
                    carried = Self::carried(&pins)
                        .inspect_err(|error| warn!(%error, "windows were lost with their gate"))
                        .ok();
                }
                detach(&pins).await?;
                Origin::Loaded
            }
        };
        match Self::complete(&pins, &layout, origin) {
            Ok(mut gate) => {
                if let Some(carried) = carried {
                    gate.cover_all().await?;
                    carried.put(&mut gate.maps)?;
                }
                debug!(?origin, "the gate is in force");
                Ok(gate)
            }
            Err(error) => {
                if origin == Origin::Loaded {
                    detach(&pins).await?;
                }
                Err(error)
            }
        }
    }

    /// The windows of a gate that was loaded for another lockd. Their report is kept, in case no new
    /// gate can be loaded.
    fn carried(pins: &Pins) -> Result<Carried, GraceError> {
        let gate = Gate {
            maps: Maps::open(pins)?,
            pins: pins.clone(),
        };
        leftovers::keep_report(&gate);
        Carried::of(&gate.maps)
    }

    /// Whether it was loaded for a lockd that is no longer in the kernel.
    pub(super) fn is_of_another_lockd(&self) -> Result<bool, GraceError> {
        let loaded = self.pins.lockd()?;
        Ok(loaded.is_some() && loaded != lockd::incarnation())
    }

    /// Loads and attaches what is missing.
    fn complete(pins: &Pins, layout: &GateLayout, origin: Origin) -> Result<Self, GraceError> {
        if origin == Origin::Loaded {
            load(pins, layout)?;
        }
        for probe in &PROBES {
            attach(pins, probe)?;
        }
        guard::attach(pins)?;
        let mut gate = Gate {
            maps: Maps::open(pins)?,
            pins: pins.clone(),
        };
        if origin == Origin::Loaded {
            gate.maps.set_secret(random()?)?;
        }
        // After the probe that follows ports, so that none is missed between.
        gate.add_ports()?;
        pins.set_ready(layout)?;
        Ok(gate)
    }

    /// Adds the ports that lockd listens on now, and returns them; true marks a TCP port.
    fn add_ports(&mut self) -> Result<BTreeSet<(bool, u16)>, GraceError> {
        let found = LockdPorts::look_up()?;
        let ports = found.ports().iter();
        let ports: BTreeSet<_> = ports
            .map(|found| (found.transport == Transport::Tcp, found.port))
            .collect();
        for &(tcp, port) in &ports {
            self.maps.add_port(tcp, port)?;
        }
        Ok(ports)
    }

    /// Adds lockd's ports, and removes those of `known`, the result of the last call, that it has given
    /// up.
    pub(super) fn follow_ports(
        &mut self,
        known: &mut BTreeSet<(bool, u16)>,
    ) -> Result<(), GraceError> {
        let now = self.add_ports()?;
        // A lockd that restarts may use the same ports again.
        if now.is_empty() {
            return Ok(());
        }
        let given_up: Vec<_> = known.difference(&now).copied().collect();
        for &(tcp, port) in &given_up {
            debug!(tcp, port, "lockd has given up a port");
            self.maps.remove_port(tcp, port)?;
        }
        *known = now;
        if !given_up.is_empty() {
            // One of them may have been taken again just now.
            known.extend(self.add_ports()?);
        }
        Ok(())
    }

    /// Attaches the gate to every device that does not have it yet.
    ///
    /// # Errors
    /// If the devices cannot be listed. A device that refuses the gate is in the coverage.
    pub async fn cover_all(&self) -> Result<Coverage, GraceError> {
        let netlink = Netlink::connect()?;
        let devices = netlink.devices().await?;
        let gone = |index: &u32| !devices.iter().any(|device| device.index == *index);
        for index in self.pins.linked_devices()?.into_iter().filter(gone) {
            let _ = fs::remove_file(self.pins.device_link(index));
        }
        for index in self.pins.noted_qdiscs()?.into_iter().filter(gone) {
            self.pins.forget_qdisc(index)?;
        }
        let mut coverage = Coverage::default();
        for device in devices {
            let result = self.cover(&netlink, &device).await;
            match result {
                Ok(None) => coverage.covered.push(device),
                Ok(Some(reason)) => coverage.uncovered.push(Uncovered {
                    device,
                    reason,
                    failed: false,
                }),
                Err(error) => {
                    // The device may be gone by now.
                    let now = netlink.devices().await?;
                    if now.iter().any(|still| still.index == device.index) {
                        coverage.uncovered.push(Uncovered {
                            device,
                            reason: error.to_string(),
                            failed: true,
                        });
                    }
                }
            }
        }
        Ok(coverage)
    }

    /// Returns a reason if the gate does not know the packet format of the device.
    async fn cover(
        &self,
        netlink: &Netlink,
        device: &Device,
    ) -> Result<Option<String>, GraceError> {
        let Some(frames) = device.frames() else {
            let kind = device.kind;
            return Ok(Some(format!(
                "the gate cannot read packets of this device type (ARPHRD {kind})"
            )));
        };
        let cover = |error: ProgramError| GraceError::Cover {
            device: device.name.clone(),
            cause: crate::causes::chain(&error),
        };
        let path = self.pins.program(frames.program());
        let mut program = SchedClassifier::from_pin(&path)
            .map_err(|error| GraceError::pin("open", &path, &error))?;
        let id = program.info().map_err(cover)?.id();
        match SchedClassifier::query_tcx(&device.name, TcAttachType::Ingress) {
            Ok((_, programs)) if programs.iter().any(|program| program.id() == id) => {}
            Ok(_) => self.link(&mut program, device)?,
            Err(error) if lacks_tcx(&error) => {
                let fd = program.fd().map_err(cover)?;
                let attached = tc::attach(netlink, device, fd.as_fd(), id).await?;
                if attached.added_qdisc {
                    self.pins.note_qdisc(device.index)?;
                }
                debug!(device = device.name, ?attached, "clsact");
            }
            Err(error) => return Err(cover(error)),
        }
        Ok(None)
    }

    /// Attaches by tcx, before all other programs, and pins the link.
    fn link(&self, program: &mut SchedClassifier, device: &Device) -> Result<(), GraceError> {
        let failed = |cause: String| GraceError::Cover {
            device: device.name.clone(),
            cause,
        };
        let pin = self.pins.device_link(device.index);
        // Another program detached the link that this pin held.
        let _ = fs::remove_file(&pin);
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let link = program
            .attach_with_options(&device.name, TcAttachType::Ingress, options)
            .and_then(|id| program.take_link(id))
            .map_err(|error| failed(crate::causes::chain(&error)))?;
        let link = FdLink::try_from(link).map_err(|error| failed(error.to_string()))?;
        link.pin(&pin)
            .map_err(|error| GraceError::pin("pin", &pin, &error))?;
        debug!(device = device.name, "tcx");
        Ok(())
    }

    /// Removes the gate from the kernel. Returns the number of pins and filters.
    pub(crate) async fn detach(self) -> Result<usize, GraceError> {
        detach(&self.pins).await
    }
}

/// Loads the object, pins its maps and programs, and lets the programs know their
/// network namespace.
fn load(pins: &Pins, layout: &GateLayout) -> Result<(), GraceError> {
    pins.create()?;
    let mut ebpf = object(layout)?;
    for (name, map) in ebpf.maps() {
        // Maps of constants: pinned names have no dots, and these maps are not opened again.
        if name.starts_with('.') {
            continue;
        }
        let path = pins.map(name);
        map.pin(&path)
            .map_err(|error| GraceError::pin("pin", &path, &error))?;
    }
    for (name, program) in ebpf.programs_mut() {
        load_program(program).map_err(|source| GraceError::Refused {
            program: known(name),
            source: Box::new(source),
        })?;
        let path = pins.program(name);
        program
            .pin(&path)
            .map_err(|error| GraceError::pin("pin", &path, &error))?;
    }
    run_here(&ebpf)
}

fn random() -> Result<u64, GraceError> {
    let mut bytes = [0; 8];
    fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .map_err(|source| GraceError::File {
            path: "/dev/urandom".into(),
            source,
        })?;
    Ok(u64::from_ne_bytes(bytes))
}

fn object(layout: &GateLayout) -> Result<Ebpf, GraceError> {
    loader()
        .override_global("GATE_LAYOUT", layout, true)
        .load(OBJECT)
        .map_err(|error| GraceError::Load(Box::new(error)))
}

/// Passes every program of the gate to the kernel's verifier and attaches none. Returns each name with
/// the verifier's result.
///
/// # Errors
/// If the kernel refuses the maps, before the verifier sees a program.
pub fn verify(
    layout: &GateLayout,
) -> Result<BTreeMap<String, Result<(), ProgramError>>, GraceError> {
    let mut ebpf = object(layout)?;
    Ok((ebpf.programs_mut())
        .map(|(name, program)| (name.to_owned(), load_program(program)))
        .collect())
}

fn load_program(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::KProbe(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// The program's name as a static string, for errors.
fn known(name: &str) -> &'static str {
    (PROBES.iter().map(|probe| probe.program))
        .chain([HERE, "gate_ether", "gate_raw", guard::PROGRAM])
        .find(|known| *known == name)
        .unwrap_or("of an unknown name")
}

fn run_here(ebpf: &Ebpf) -> Result<(), GraceError> {
    use aya::programs::{RawTracePointRunOptions, TestRun};

    let program: &RawTracePoint = (ebpf.program(HERE))
        .and_then(|program| program.try_into().ok())
        .ok_or(GraceError::Foreign(HERE))?;
    program
        .test_run(RawTracePointRunOptions::new())
        .map_err(|source| GraceError::Refused {
            program: HERE,
            source: Box::new(source),
        })?;
    Ok(())
}

/// Attaches a probe if its link is not pinned, and pins it.
fn attach(pins: &Pins, probe: &Probe) -> Result<(), GraceError> {
    let pin = pins.link(probe.program);
    if pin.exists() {
        return Ok(());
    }
    let failed = |source| GraceError::Attach {
        program: probe.program,
        function: probe.function,
        source: Box::new(source),
    };
    let path = pins.program(probe.program);
    let mut kprobe = KProbe::from_pin(&path, probe.kind)
        .map_err(|error| GraceError::pin("open", &path, &error))?;
    let link = kprobe
        .attach(probe.function, 0)
        .and_then(|id| kprobe.take_link(id))
        .map_err(failed)?;
    let link = FdLink::try_from(link).map_err(|_| GraceError::NoLink {
        program: probe.program,
    })?;
    link.pin(&pin)
        .map_err(|error| GraceError::pin("pin", &pin, &error))?;
    Ok(())
}

/// Kernels before 6.6, and those without `CONFIG_NET_XGRESS`, know no such query.
fn lacks_tcx(error: &ProgramError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return io.raw_os_error() == Some(libc::EINVAL);
        }
        source = cause.source();
    }
    false
}

/// Removes a gate from the kernel, of any version and in any state. Returns the number of pins and
/// filters.
pub(super) async fn detach(pins: &Pins) -> Result<usize, GraceError> {
    let removed = detach_filters(&pins.noted_qdiscs()?).await?;
    Ok(removed + pins.remove()?)
}

/// Removes our filters from every device of this network namespace. `qdiscs` are the devices whose
/// qdisc nlmfo created.
pub(super) async fn detach_filters(qdiscs: &[u32]) -> Result<usize, GraceError> {
    let netlink = Netlink::connect()?;
    let mut removed = 0;
    for device in netlink.devices().await? {
        removed += tc::detach(&netlink, device.index, qdiscs.contains(&device.index)).await?;
    }
    Ok(removed)
}
