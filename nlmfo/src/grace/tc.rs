//! The gate as a filter of a clsact qdisc, for kernels without tcx (before 6.6).
//!
//! The filter stays without any process or pin of ours: by its name, which begins with
//! `nlmfo`, any run finds it again.

use std::os::fd::{AsRawFd, BorrowedFd};

use futures_util::StreamExt;
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};
use rustix::io::Errno;

use super::GraceError;
use super::devices::{Device, Netlink};

/// What the names of our filters begin with.
const OURS: &str = "nlmfo";

/// Before all other filters, unless they have the same priority.
const PRIORITY: u16 = 1;

/// "nlmf" in ASCII: a fixed one, so that a second filter of ours is refused.
const HANDLE: u32 = u32::from_be_bytes(*b"nlmf");

/// `ETH_P_ALL` as the kernel wants it: in network byte order.
const ALL_PROTOCOLS: u16 = 0x0003u16.to_be();

const QDISC: &str = "clsact";
const FILTER: &str = "bpf";

/// A filter on a device's ingress or egress.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Filter {
    handle: u32,
    /// Priority and protocol.
    info: u32,
    kind: String,
    name: Option<String>,
    program: Option<u32>,
}

impl Filter {
    fn is_ours(&self) -> bool {
        self.kind == FILTER && self.name.as_deref().is_some_and(|n| n.starts_with(OURS))
    }
}

/// What [`attach`] found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attached {
    /// The qdisc was not there before.
    pub added_qdisc: bool,
    /// The filter was not there before.
    pub added_filter: bool,
}

/// Attaches a program, with this `id`, to the device's ingress unless it is attached already. A filter
/// of ours with another program is replaced.
pub(super) async fn attach(
    netlink: &Netlink,
    device: &Device,
    program: BorrowedFd<'_>,
    id: u32,
) -> Result<Attached, GraceError> {
    let cover = |cause: String| GraceError::Cover {
        device: device.name.clone(),
        cause,
    };
    // Checked before anything is changed: usually everything is in place.
    let mut added_qdisc = false;
    for _ in 0..3 {
        let filters = filters(netlink, device.index, Side::Ingress)
            .await
            .map_err(|error| cover(format!("listing its filters: {error}")))?;
        let there = filters
            .into_iter()
            .find(|filter| filter.handle == HANDLE && filter.info >> 16 == u32::from(PRIORITY));
        match there {
            Some(filter) if filter.is_ours() && filter.program == Some(id) => {
                return Ok(Attached {
                    added_qdisc,
                    added_filter: false,
                });
            }
            Some(filter) if filter.is_ours() => remove_filter(netlink, device.index, &filter)
                .await
                .map_err(|error| cover(format!("replacing an older gate: {error}")))?,
            Some(_) => {
                return Err(cover(
                    "a filter that is not nlmfo's has the gate's handle".into(),
                ));
            }
            None => {}
        }
        match request(netlink, add_qdisc(device.index)).await {
            Ok(_) => added_qdisc = true,
            Err(Failed::Kernel(Errno::EXIST)) => {}
            Err(error) => return Err(cover(format!("adding a clsact qdisc: {error}"))),
        }
        match request(netlink, add_filter(device.index, program)).await {
            Ok(_) => {
                return Ok(Attached {
                    added_qdisc,
                    added_filter: true,
                });
            }
            // Another process was faster: the next pass shows its filter.
            Err(Failed::Kernel(Errno::EXIST)) => {}
            Err(Failed::Kernel(Errno::INVAL)) => {
                return Err(cover(format!(
                    "a filter of another kind has priority {PRIORITY} on its ingress (`tc filter \
                     show dev {} ingress`), which the gate needs: give it a later one",
                    device.name
                )));
            }
            Err(error) => return Err(cover(format!("adding a filter: {error}"))),
        }
    }
    Err(cover("its filters keep changing".into()))
}

/// Removes our filters from the device, and its qdisc if nlmfo created it and no other program uses it.
/// Returns the number of filters.
pub(super) async fn detach(
    netlink: &Netlink,
    device: u32,
    qdisc_is_ours: bool,
) -> Result<usize, GraceError> {
    let what = || format!("take the gate off the network device {device}");
    let failed = |error: Failed| GraceError::netlink(what(), error);
    let mut removed = 0;
    for filter in filters(netlink, device, Side::Ingress)
        .await
        .map_err(failed)?
    {
        if filter.is_ours() {
            remove_filter(netlink, device, &filter)
                .await
                .map_err(failed)?;
            removed += 1;
        }
    }
    let mut others = filters(netlink, device, Side::Ingress)
        .await
        .map_err(failed)?;
    if others.iter().any(Filter::is_ours) {
        return Err(failed(Failed::Kernel(Errno::INVAL)));
    }
    if qdisc_is_ours {
        others.extend(
            filters(netlink, device, Side::Egress)
                .await
                .map_err(failed)?,
        );
        if others.is_empty() {
            not_there_is_fine(request(netlink, remove_qdisc(device)).await).map_err(failed)?;
        }
    }
    Ok(removed)
}

#[derive(Clone, Copy)]
enum Side {
    Ingress,
    Egress,
}

impl Side {
    fn parent(self) -> TcHandle {
        TcHandle {
            major: 0xffff,
            minor: match self {
                Side::Ingress => TcHandle::MIN_INGRESS,
                Side::Egress => TcHandle::MIN_EGRESS,
            },
        }
    }
}

type Request = NetlinkMessage<RouteNetlinkMessage>;

fn add_qdisc(device: u32) -> Request {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(qdisc(device)));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    request
}

fn remove_qdisc(device: u32) -> Request {
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::DelQueueDiscipline(qdisc(device)));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    request
}

fn qdisc(device: u32) -> TcMessage {
    let mut message = TcMessage::with_index(device as i32);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    message.attributes.push(TcAttribute::Kind(QDISC.into()));
    message
}

fn add_filter(device: u32, program: BorrowedFd<'_>) -> Request {
    let mut message = filter(device, HANDLE, info(PRIORITY));
    let options = [
        TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32),
        TcFilterBpfOption::ProgName(format!("{OURS}-gate")),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    message.attributes.extend([
        TcAttribute::Kind(FILTER.into()),
        TcAttribute::Options(options.map(TcOption::Bpf).into()),
    ]);
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewTrafficFilter(message));
    request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
    request
}

fn filter(device: u32, handle: u32, info: u32) -> TcMessage {
    let mut message = TcMessage::with_index(device as i32);
    message.header.parent = Side::Ingress.parent();
    message.header.handle = handle.into();
    message.header.info = info;
    message
}

fn info(priority: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(ALL_PROTOCOLS)
}

async fn remove_filter(netlink: &Netlink, device: u32, found: &Filter) -> Result<(), Failed> {
    let mut message = filter(device, found.handle, found.info);
    message.attributes.push(TcAttribute::Kind(FILTER.into()));
    let mut remove = NetlinkMessage::from(RouteNetlinkMessage::DelTrafficFilter(message));
    remove.header.flags = NLM_F_REQUEST | NLM_F_ACK;
    not_there_is_fine(request(netlink, remove).await)
}

/// None if the device has no clsact qdisc, or has gone.
async fn filters(netlink: &Netlink, device: u32, side: Side) -> Result<Vec<Filter>, Failed> {
    let mut message = TcMessage::with_index(device as i32);
    message.header.parent = side.parent();
    let mut dump = NetlinkMessage::from(RouteNetlinkMessage::GetTrafficFilter(message));
    dump.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let found = match request(netlink, dump).await {
        Err(Failed::Kernel(Errno::INVAL | Errno::NOENT | Errno::NODEV)) => return Ok(Vec::new()),
        other => other?,
    };
    // A priority's own entry comes first, with no handle.
    let filters = found.iter().filter_map(read_filter);
    Ok(filters.filter(|filter| filter.handle != 0).collect())
}

fn read_filter(message: &RouteNetlinkMessage) -> Option<Filter> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = message else {
        return None;
    };
    let mut filter = Filter {
        handle: message.header.handle.into(),
        info: message.header.info,
        kind: String::new(),
        name: None,
        program: None,
    };
    for attribute in &message.attributes {
        match attribute {
            TcAttribute::Kind(kind) => filter.kind.clone_from(kind),
            TcAttribute::Options(options) => {
                for option in options {
                    match option {
                        TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => {
                            filter.name = Some(name.clone());
                        }
                        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => filter.program = Some(*id),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Some(filter)
}

/// The error of a removal. The kernel says "invalid argument" if the device has no clsact qdisc
/// (net/sched: `tc_get_qdisc`, `tc_del_tfilter`, 6.1).
fn not_there_is_fine<T>(result: Result<T, Failed>) -> Result<(), Failed> {
    match result {
        Err(Failed::Kernel(Errno::NOENT | Errno::NODEV | Errno::INVAL)) => Ok(()),
        other => other.map(drop),
    }
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Kernel(Errno),
    #[error("{0}")]
    Socket(rtnetlink::Error),
}

/// Sends a request and returns the answer.
async fn request(netlink: &Netlink, request: Request) -> Result<Vec<RouteNetlinkMessage>, Failed> {
    let mut answers = (netlink.handle.clone())
        .request(request)
        .map_err(Failed::Socket)?;
    let mut found = Vec::new();
    while let Some(answer) = answers.next().await {
        match answer.payload {
            NetlinkPayload::Error(ErrorMessage {
                code: Some(code), ..
            }) => return Err(Failed::Kernel(Errno::from_raw_os_error(-code.get()))),
            NetlinkPayload::InnerMessage(message) => found.push(message),
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bpf(name: &str) -> Filter {
        Filter {
            handle: HANDLE,
            info: info(PRIORITY),
            kind: FILTER.into(),
            name: Some(name.into()),
            program: Some(7),
        }
    }

    #[test]
    fn ours_is_told_by_kind_and_name() {
        assert!(bpf("nlmfo-gate").is_ours());
        assert!(!bpf("cilium").is_ours());
        let flower = Filter {
            kind: "flower".into(),
            ..bpf("nlmfo-gate")
        };
        assert!(!flower.is_ours());
    }

    #[test]
    fn the_priority_is_before_the_protocol() {
        // As iproute2 sends it for `pref 1 protocol all` on a little-endian machine.
        #[cfg(target_endian = "little")]
        assert_eq!(info(1), 0x0001_0300);
    }

    #[test]
    fn a_filter_is_read_from_the_kernels_message() {
        let mut message = filter(3, HANDLE, info(PRIORITY));
        message.attributes = vec![
            TcAttribute::Kind("bpf".into()),
            TcAttribute::Options(vec![
                TcOption::Bpf(TcFilterBpfOption::ProgName("nlmfo-gate".into())),
                TcOption::Bpf(TcFilterBpfOption::ProgId(7)),
            ]),
        ];
        let read = read_filter(&RouteNetlinkMessage::NewTrafficFilter(message));
        assert_eq!(read, Some(bpf("nlmfo-gate")));
    }
}
