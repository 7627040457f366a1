//! The record of one of lockd's hosts (`nlm_host`).

use nlmfo_common::record::{HostRecord, NAME_MAX, kind};

use crate::kernel::{host_vip, layout, pointer, read, read_name, sockaddr};

/// Assigns fields behind a raw pointer into a reserved record.
macro_rules! fill {
    ($record:expr, { $($field:ident: $value:expr),+ $(,)? }) => {{
        let record = $record;
        $(
            let value = $value;
            // SAFETY: the record is reserved in a ring buffer, and aligned to 8.
            unsafe { (&raw mut (*record).$field).write(value) };
        )+
    }};
}
pub(crate) use fill;

/// Fills in the record of the `nlm_host` at `host`.
#[inline(always)]
pub fn describe(host: u64, record: *mut HostRecord) -> Result<(), i32> {
    let net = pointer(host, layout!(host_net))?;
    fill!(record, {
        kind: kind::HOST,
        version: read(host, layout!(host_version))?,
        host: host,
        vip: host_vip(host)?,
        client: sockaddr(host + layout!(host_addr) as u64)?,
        proto: read::<u16>(host, layout!(host_proto))? as u32,
        netns: read(net, layout!(net_inum))?,
        expires: read(host, layout!(host_expires))?,
        nsm_priv: [0; 16],
        nsm_name: [0; NAME_MAX],
    });
    // SAFETY: as in `fill!`.
    let (name, nsm_name) = unsafe { (&raw mut (*record).name, &raw mut (*record).nsm_name) };
    read_name(name, pointer(host, layout!(host_name))?);
    let nsm = pointer(host, layout!(host_nsmhandle))?;
    if nsm != 0 {
        fill!(record, { nsm_priv: read(nsm, layout!(nsm_priv))? });
        read_name(nsm_name, pointer(nsm, layout!(nsm_name))?);
    }
    Ok(())
}
