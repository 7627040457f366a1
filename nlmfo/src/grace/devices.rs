//! The network devices of this namespace: their list, the format of their packets, and events for
//! new ones and for addresses that go.

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkLayerType, LinkMessage};
use serde::Serialize;
use tokio::task::JoinHandle;

use super::GraceError;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    pub index: u32,
    pub name: String,
    /// `ARPHRD_*` of `include/uapi/linux/if_arp.h`.
    pub kind: u16,
}

/// Which devices the gate covers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Coverage {
    /// Their packets pass the gate.
    pub covered: Vec<Device>,
    /// Their packets bypass the gate.
    pub uncovered: Vec<Uncovered>,
}

/// A device whose packets do not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Uncovered {
    /// The device.
    #[serde(flatten)]
    pub device: Device,
    /// Why the gate is not on it, as text.
    pub reason: String,
    /// Whether an attempt failed, as opposed to a device type that the gate does not know.
    pub failed: bool,
}

/// Which of the gate's programs reads a device's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// A 14-byte Ethernet header comes first.
    Ethernet,
    /// The IP header comes first.
    Ip,
}

impl Frames {
    /// The name of the program.
    pub fn program(self) -> &'static str {
        match self {
            Frames::Ethernet => "gate_ether",
            Frames::Ip => "gate_raw",
        }
    }
}

impl Device {
    /// The format of its packets; `None` for device types that, as far as the gate knows, carry
    /// no IP traffic to lockd.
    pub fn frames(&self) -> Option<Frames> {
        Some(match LinkLayerType::from(self.kind) {
            LinkLayerType::Ether | LinkLayerType::Loopback => Frames::Ethernet,
            LinkLayerType::None
            | LinkLayerType::Rawip
            | LinkLayerType::Ppp
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Ip6gre => Frames::Ip,
            _ => return None,
        })
    }
}

/// A route netlink socket and the task that reads it.
pub(super) struct Netlink {
    pub handle: rtnetlink::Handle,
    connection: JoinHandle<()>,
}

impl Netlink {
    pub fn connect() -> Result<Self, GraceError> {
        let (connection, handle, _) = rtnetlink::new_connection()
            .map_err(|error| GraceError::netlink("open a route netlink socket", error))?;
        Ok(Netlink {
            handle,
            connection: tokio::spawn(connection),
        })
    }

    /// All devices, in the order of their indices.
    pub async fn devices(&self) -> Result<Vec<Device>, GraceError> {
        let links: Vec<LinkMessage> = (self.handle.link().get().execute().try_collect().await)
            .map_err(|error| GraceError::netlink("list the network devices", error))?;
        let mut devices: Vec<Device> = links.iter().map(device).collect();
        devices.sort_unstable_by_key(|device| device.index);
        Ok(devices)
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn device(link: &LinkMessage) -> Device {
    let name = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.clone()),
            _ => None,
        });
    Device {
        index: link.header.index,
        name: name.unwrap_or_default(),
        kind: link.header.link_layer_type.into(),
    }
}

/// Receives events for new devices and for addresses that go.
pub struct Monitor {
    messages: std::pin::Pin<Box<dyn futures_util::Stream<Item = Heard> + Send>>,
    connection: JoinHandle<()>,
}

enum Heard {
    /// A device appeared or changed, an address went, or events were lost.
    Change,
    Other,
}

impl Monitor {
    pub fn start() -> Result<Self, GraceError> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ])
        .map_err(|error| GraceError::netlink("listen for network devices", error))?;
        let messages = messages.map(|(message, _)| match message.payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewLink(_) | RouteNetlinkMessage::DelAddress(_),
            )
            | NetlinkPayload::Overrun(_) => Heard::Change,
            _ => Heard::Other,
        });
        Ok(Monitor {
            messages: Box::pin(messages),
            connection: tokio::spawn(connection),
        })
    }

    /// Waits until there may be a new device, or an address fewer; `false` if no more events will come.
    pub async fn changed(&mut self) -> bool {
        loop {
            match self.messages.next().await {
                Some(Heard::Change) => return true,
                Some(Heard::Other) => {}
                None => return false,
            }
        }
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(kind: u16) -> Option<Frames> {
        Device {
            index: 2,
            name: "eth0".into(),
            kind,
        }
        .frames()
    }

    /// Numbers of `include/uapi/linux/if_arp.h`.
    #[test]
    fn frames_follow_the_devices_type() {
        assert_eq!(frames(1), Some(Frames::Ethernet));
        assert_eq!(frames(772), Some(Frames::Ethernet));
        for ip in [0xfffe, 512, 519, 768, 769, 776, 778, 823] {
            assert_eq!(frames(ip), Some(Frames::Ip), "{ip}");
        }
        assert_eq!(frames(32), None, "InfiniBand has a header of its own");
    }

    #[tokio::test]
    async fn the_loopback_device_is_the_first() {
        let devices = Netlink::connect().unwrap().devices().await.unwrap();
        assert_eq!((devices[0].index, devices[0].name.as_str()), (1, "lo"));
        assert_eq!(devices[0].frames(), Some(Frames::Ethernet));
    }
}
