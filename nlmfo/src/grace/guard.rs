//! The guard at lockd's sockets: a program at the root cgroup's ingress.

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType};

use super::GraceError;
use super::pins::Pins;
use crate::causes::chain;
use crate::kernel::cgroup;

pub(super) const PROGRAM: &str = "guard";

/// Attaches the guard if its link is not pinned, and pins it. Other programs at the root cgroup
/// continue to run.
pub(super) fn attach(pins: &Pins) -> Result<(), GraceError> {
    let pin = pins.link(PROGRAM);
    if pin.exists() {
        return Ok(());
    }
    let failed = |error: &(dyn std::error::Error + 'static)| GraceError::Guard(chain(error));
    let root = cgroup::root().map_err(|error| failed(&error))?;
    let path = pins.program(PROGRAM);
    let mut program = CgroupSkb::from_pin(&path, CgroupSkbAttachType::Ingress)
        .map_err(|error| GraceError::pin("open", &path, &error))?;
    // A link takes no flags, and always leaves room for others (kernel/bpf/cgroup.c,
    // `cgroup_bpf_link_attach`).
    let mode = CgroupAttachMode::Single;
    let link = program
        .attach(root, CgroupSkbAttachType::Ingress, mode)
        .and_then(|id| program.take_link(id))
        .map_err(|error| failed(&error))?;
    let link = FdLink::try_from(link).map_err(|_| GraceError::NoLink { program: PROGRAM })?;
    link.pin(&pin)
        .map_err(|error| GraceError::pin("pin", &pin, &error))?;
    Ok(())
}
