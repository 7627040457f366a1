//! The detour: packets between one VIP and some of its clients stay on this node.
//!
//! A call in a client's name has a source address that is not this node's, and lockd's answer to it
//! would be sent to the real client. While a [`Detour`] exists, a routing table of nlmfo makes these
//! clients *local*, and rules look it up first for packets that this node sends from the VIP (and, if
//! the VIP is not here, to the VIP):
//!
//! ```text
//! 1: from VIP iif lo lookup TABLE         lockd's answers
//! 1: from all to VIP iif lo lookup TABLE  nlmfo's calls, if the VIP is no longer here
//!    local CLIENT dev lo table TABLE      for each client
//!    local VIP dev lo table TABLE         if the VIP is no longer here
//! ```
//!
//! Notes:
//!
//! - `iif lo` matches packets that this node sends: packets that arrive or are forwarded do not match
//!   these rules, and neither does traffic of other addresses.
//! - A packet sent to `lo` keeps its route, so that neither `rp_filter` nor the martian check applies
//!   to it, and no sysctl needs to change.
//! - While the detour exists, the real clients' packets to the VIP are dropped (IPv4: their source is
//!   local, a martian) or not answered (the answer stays on this node). This affects only the VIP that
//!   is given up.
//! - Linux sends IPv4 only from an address of some device. A VIP that has left the node is added to a
//!   device of nlmfo that stays down. The local route that the kernel adds with the address is removed
//!   again, since a node answers ARP for local addresses, and the VIP may already be up on another
//!   node. For IPv6, lockd's UDP answers need the address; a node answers neighbour solicitations per
//!   device, so that the local route does no harm.
//!
//! All of it has nlmfo's own routing protocol number, table number or device name, by which [`cleanup`]
//! finds it, even after a kill. There is one detour at a time: the holder of the [`Turn`] has it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_core::ErrorMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::route::{
    RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkBridge, LinkDummy, RouteMessageBuilder};
use tokio::task::JoinHandle;

use super::turn::Turn;
use crate::runtime;

/// Marks our rules and routes: a number that no routing daemon of iproute2's
/// `rt_protos` has.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(178);

/// Our table, "nlmf" in ASCII: far from the small numbers that administrators use.
const TABLE: u32 = u32::from_be_bytes(*b"nlmf");

/// What is local to this node: the kernel's own table.
const LOCAL_TABLE: u32 = 255;

/// Before the rules of any administrator, after the local table's own.
const PRIORITY: u32 = 1;

/// The device for a VIP that has left this node.
const DEVICE: &str = "nlmfo0";

/// Every device has the name `lo` in its network namespace, with index 1.
const LOOPBACK: &str = "lo";

/// A change to routes or rules that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}: {cause}")]
pub struct Error {
    what: String,
    cause: String,
}

impl Error {
    fn new(what: impl Into<String>, cause: impl ToString) -> Self {
        Error {
            what: what.into(),
            cause: cause.to_string(),
        }
    }
}

/// What [`cleanup`] removed from the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Removed {
    /// Policy routing rules.
    pub rules: usize,
    /// Routes, those of the local table included.
    pub routes: usize,
    /// Network devices.
    pub devices: usize,
}

impl Removed {
    /// Whether nothing of nlmfo was there.
    pub fn is_nothing(self) -> bool {
        self == Removed::default()
    }
}

/// An open detour. Dropping it closes it too, but only logs errors.
#[derive(Debug)]
#[must_use = "the detour is removed when this is dropped"]
pub struct Detour {
    open: bool,
}

impl Detour {
    /// Keeps packets between `vip` and `clients` on this node. Clients at this node's own
    /// addresses need no route.
    ///
    /// # Errors
    /// The kernel refused a route, a rule or the device; what was added is removed.
    pub async fn open(
        _turn: &Turn,
        vip: IpAddr,
        clients: &BTreeSet<IpAddr>,
    ) -> Result<Self, Error> {
        // Only a killed run can have left anything.
        cleanup().await?;
        let detour = Detour { open: true };
        let netlink = Netlink::connect()?;
        let lo = netlink.link_index(LOOPBACK).await?.ok_or_else(|| {
            Error::new(
                "find the loopback device",
                "this network namespace has none",
            )
        })?;
        let ours = netlink.addresses().await?;
        for client in clients
            .difference(&ours)
            .filter(|client| same_family(client, &vip))
        {
            netlink.add_local_route(*client, lo).await?;
        }
        if !ours.contains(&vip) {
            netlink.add_local_route(vip, lo).await?;
            netlink.add_device(vip).await?;
            netlink.add_rule(Match::To(vip)).await?;
        }
        // Last, so that the VIP's packets are rerouted only once everything is in place.
        netlink.add_rule(Match::From(vip)).await?;
        Ok(detour)
    }

    /// Removes it. If a signal interrupts this, the drop removes the rest.
    ///
    /// # Errors
    /// The kernel refused a removal: `nlmfo cleanup` repeats it.
    pub async fn close(mut self) -> Result<(), Error> {
        cleanup().await?;
        self.open = false;
        Ok(())
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        if !self.open {
            return;
        }
        let removed = runtime::finish(cleanup);
        let removed = removed.unwrap_or_else(|error| Err(Error::new("start a runtime", error)));
        if let Err(error) = removed {
            let error = crate::causes::chain(&error);
            tracing::error!("routes of nlmfo remain; run `nlmfo cleanup`: {error}");
        }
    }
}

/// Removes every rule, route and device of ours from this network namespace.
///
/// # Errors
/// If the kernel refuses to list or to remove them.
pub async fn cleanup() -> Result<Removed, Error> {
    let netlink = Netlink::connect()?;
    let mut removed = Removed::default();
    for family in [IpVersion::V4, IpVersion::V6] {
        removed.rules += netlink.remove_rules(family.clone()).await?;
        for table in [TABLE, LOCAL_TABLE] {
            removed.routes += netlink.remove_routes(family.clone(), table).await?;
        }
    }
    removed.devices = netlink.remove_device().await?;
    Ok(removed)
}

/// Which packets a rule sends to our table.
#[derive(Clone, Copy)]
enum Match {
    From(IpAddr),
    To(IpAddr),
}

struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Netlink {
    fn connect() -> Result<Self, Error> {
        // With strict checking the kernel dumps only our table, and not all routes of a router.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()
            .map_err(|error| Error::new("open a route netlink socket", error))?;
        Ok(Netlink {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    async fn addresses(&self) -> Result<BTreeSet<IpAddr>, Error> {
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| Error::new("list this node's addresses", error))?;
        // On a point-to-point device `Address` is the other end and `Local` ours.
        Ok(messages
            .into_iter()
            .filter_map(|message| {
                let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
                    message.attributes.iter().find_map(wanted)
                };
                find(|attribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                })
                .or_else(|| {
                    find(|attribute| match attribute {
                        AddressAttribute::Address(address) => Some(*address),
                        _ => None,
                    })
                })
            })
            .collect())
    }

    async fn link_index(&self, name: &str) -> Result<Option<u32>, Error> {
        let links: Vec<_> = self
            .handle
            .link()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| Error::new("list this node's network devices", error))?;
        let named = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(found) if found == name);
        let link = links
            .into_iter()
            .find(|link| link.attributes.iter().any(named));
        Ok(link.map(|link| link.header.index))
    }

    async fn add_local_route(&self, address: IpAddr, lo: u32) -> Result<(), Error> {
        self.add_route(local_route(address, lo), "a local", address)
            .await
    }

    async fn add_route(&self, route: RouteMessage, kind: &str, to: IpAddr) -> Result<(), Error> {
        let added = self.handle.route().add(route).execute().await;
        added.map_err(|error| Error::new(format!("add {kind} route for {to}"), error))
    }

    async fn remove_route(&self, route: RouteMessage) -> Result<(), Error> {
        let removed = self.handle.route().del(route).execute().await;
        removed.map_err(|error| Error::new("remove nlmfo's route", error))
    }

    async fn add_rule(&self, packets: Match) -> Result<(), Error> {
        let add = self
            .handle
            .rule()
            .add()
            .priority(PRIORITY)
            .table_id(TABLE)
            .action(RuleAction::ToTable)
            .input_interface(LOOPBACK);
        let (result, name) = match packets {
            Match::From(IpAddr::V4(vip)) => (
                ours(add.v4().source_prefix(vip, 32)).execute().await,
                format!("from {vip}"),
            ),
            Match::From(IpAddr::V6(vip)) => (
                ours(add.v6().source_prefix(vip, 128)).execute().await,
                format!("from {vip}"),
            ),
            Match::To(IpAddr::V4(vip)) => (
                ours(add.v4().destination_prefix(vip, 32)).execute().await,
                format!("to {vip}"),
            ),
            Match::To(IpAddr::V6(vip)) => (
                ours(add.v6().destination_prefix(vip, 128)).execute().await,
                format!("to {vip}"),
            ),
        };
        result.map_err(|error| Error::new(format!("add a routing rule for packets {name}"), error))
    }

    async fn add_device(&self, vip: IpAddr) -> Result<(), Error> {
        let what = || format!("put {vip} on a device {DEVICE} that is down");
        // Any kind of device does; nearly every kernel has the first.
        let mut added = self
            .handle
            .link()
            .add(LinkDummy::new(DEVICE).down().build())
            .execute()
            .await;
        if added.as_ref().is_err_and(kind_is_absent) {
            added = self
                .handle
                .link()
                .add(LinkBridge::new(DEVICE).down().build())
                .execute()
                .await;
        }
        added.map_err(|error| Error::new(what(), error))?;
        let index = self
            .link_index(DEVICE)
            .await?
            .ok_or_else(|| Error::new(what(), "it disappeared after its creation"))?;
        let mut add = self.handle.address().add(index, vip, host_prefix(vip));
        if vip.is_ipv6() {
            // On a device that is down, an address would stay tentative forever.
            add.message_mut()
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        // The kernel adds its local route behind this one, so that the VIP is never local for
        // packets from outside.
        let throw = (vip.is_ipv4()).then(|| throw_route(vip));
        if let Some(throw) = &throw {
            self.add_route(throw.clone(), "a throw", vip).await?;
        }
        let added = add.execute().await;
        added.map_err(|error| Error::new(what(), error))?;
        if let Some(throw) = throw {
            self.remove_route(kernel_local_route(vip, index)).await?;
            self.remove_route(throw).await?;
        }
        Ok(())
    }

    async fn remove_rules(&self, family: IpVersion) -> Result<usize, Error> {
        let rules: Vec<_> = match self.handle.rule().get(family).execute().try_collect().await {
            Ok(rules) => rules,
            Err(error) if family_is_absent(&error) => return Ok(0),
            Err(error) => return Err(Error::new("list the routing rules", error)),
        };
        let ours: Vec<_> = rules.into_iter().filter(rule_is_ours).collect();
        let count = ours.len();
        for rule in ours {
            let removal = self.handle.rule().del(rule).execute().await;
            removal.map_err(|error| Error::new("remove nlmfo's routing rule", error))?;
        }
        Ok(count)
    }

    async fn remove_routes(&self, family: IpVersion, table: u32) -> Result<usize, Error> {
        let routes = self.handle.route().get(table_filter(family, table));
        let routes: Vec<_> = match routes.execute().try_collect().await {
            Ok(routes) => routes,
            // A table that was never used does not exist.
            Err(error) if is_not_there(&error) || family_is_absent(&error) => return Ok(0),
            Err(error) => return Err(Error::new("list routes", error)),
        };
        let ours = routes
            .into_iter()
            .filter(|route| route.header.protocol == PROTOCOL);
        let mut count = 0;
        for route in ours {
            self.remove_route(route).await?;
            count += 1;
        }
        Ok(count)
    }

    async fn remove_device(&self) -> Result<usize, Error> {
        let Some(index) = self.link_index(DEVICE).await? else {
            return Ok(0);
        };
        self.handle
            .link()
            .del(index)
            .execute()
            .await
            .map_err(|error| Error::new(format!("remove the device {DEVICE}"), error))?;
        Ok(1)
    }
}

/// Marks a rule as ours.
fn ours<T>(mut add: rtnetlink::RuleAddRequest<T>) -> rtnetlink::RuleAddRequest<T> {
    add.message_mut()
        .attributes
        .push(RuleAttribute::Protocol(PROTOCOL));
    add
}

fn rule_is_ours(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL))
        && rule.attributes.contains(&RuleAttribute::Table(TABLE))
}

fn local_route(address: IpAddr, lo: u32) -> RouteMessage {
    host_route(address, TABLE, RouteType::Local)
        .scope(RouteScope::Host)
        .output_interface(lo)
        .build()
}

/// Ends the lookup in the local table and lets the next rule decide.
fn throw_route(address: IpAddr) -> RouteMessage {
    host_route(address, LOCAL_TABLE, RouteType::Throw).build()
}

/// The route that the kernel adds with an address.
fn kernel_local_route(address: IpAddr, device: u32) -> RouteMessage {
    host_route(address, LOCAL_TABLE, RouteType::Local)
        .protocol(RouteProtocol::Kernel)
        .scope(RouteScope::Host)
        .output_interface(device)
        .build()
}

fn host_route(address: IpAddr, table: u32, kind: RouteType) -> RouteMessageBuilder<IpAddr> {
    RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(address, host_prefix(address))
        .expect("32 and 128 are prefix lengths of these families")
        .table_id(table)
        .protocol(PROTOCOL)
        .kind(kind)
}

/// A dump request for one table. Under strict checking every other field of the
/// header must be zero.
fn table_filter(family: IpVersion, table: u32) -> RouteMessage {
    let mut filter = RouteMessage::default();
    filter.header.address_family = match family {
        IpVersion::V4 => rtnetlink::packet_route::AddressFamily::Inet,
        IpVersion::V6 => rtnetlink::packet_route::AddressFamily::Inet6,
    };
    filter.attributes.push(RouteAttribute::Table(table));
    filter
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn same_family(a: &IpAddr, b: &IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

fn is_not_there(error: &rtnetlink::Error) -> bool {
    errno(error) == Some(rustix::io::Errno::NOENT)
}

/// IPv6 can be compiled out or switched off at boot.
fn family_is_absent(error: &rtnetlink::Error) -> bool {
    matches!(
        errno(error),
        Some(rustix::io::Errno::AFNOSUPPORT | rustix::io::Errno::OPNOTSUPP)
    )
}

fn kind_is_absent(error: &rtnetlink::Error) -> bool {
    errno(error) == Some(rustix::io::Errno::OPNOTSUPP)
}

fn errno(error: &rtnetlink::Error) -> Option<rustix::io::Errno> {
    match error {
        rtnetlink::Error::NetlinkError(ErrorMessage {
            code: Some(code), ..
        }) => Some(rustix::io::Errno::from_raw_os_error(-code.get())),
        _ => None,
    }
}
