//! The server's interface: made on the node, up in the server's network namespace.

use std::path::{Path, PathBuf};

use super::ServerError;
use super::description::{Description, Link, Vip};
use super::program::run_with_input;
use crate::kernel::netns;

/// The interface in the server's network namespace.
const INTERFACE: &str = "nlmfo0";

/// The existing network namespace that the server uses, if one is configured.
pub fn existing(link: &Link) -> Option<PathBuf> {
    match link {
        Link::Netns { name, .. } => Some(netns::named(name)),
        _ => None,
    }
}

pub fn interface(link: &Link) -> &str {
    match link {
        Link::Netns { interface, .. } => interface,
        _ => INTERFACE,
    }
}

/// The interface of the node that the server needs.
pub fn parent(link: &Link) -> Option<&str> {
    match link {
        Link::Macvlan { parent } | Link::Ipvlan { parent } => Some(parent),
        Link::Veth { bridge } => Some(bridge),
        Link::Netns { .. } => None,
    }
}

/// The commands of `ip` that make the interface in that network namespace.
fn making(description: &Description, network: &Path) -> String {
    let network = network.display();
    match &description.link {
        Link::Macvlan { parent } => format!(
            "link add link {parent} name {INTERFACE} netns {network} type macvlan mode bridge\n"
        ),
        Link::Ipvlan { parent } => {
            format!("link add link {parent} name {INTERFACE} netns {network} type ipvlan mode l2\n")
        }
        Link::Veth { bridge } => {
            // An interface's name has up to 15 bytes.
            let outer = format!("nlmfo-{:08x}", crc32fast::hash(description.name.as_bytes()));
            format!(
                "link add {outer} type veth peer name {INTERFACE} netns {network}\n\
                 link set {outer} master {bridge} up\n"
            )
        }
        Link::Netns { .. } => String::new(),
    }
}

/// Creates the interface, in the node's own namespace. It is down.
pub fn make(description: &Description, network: &Path) -> Result<(), ServerError> {
    ip(&making(description, network))
}

/// Brings the loopback interface up, which the daemons and the kernel use.
pub fn raise_loopback() -> Result<(), ServerError> {
    ip("link set lo up\n")
}

/// Gives it the addresses and brings it up; the kernel announces them to the neighbours.
pub fn raise(description: &Description) -> Result<(), ServerError> {
    let interface = interface(&description.link);
    let announced = netns::announce(interface);
    announced.map_err(ServerError::io(
        "set up announcing on",
        Path::new(interface),
    ))?;
    ip(&raising(description))
}

fn raising(description: &Description) -> String {
    let interface = interface(&description.link);
    let mut commands = String::new();
    for vip in &description.vips {
        commands += &format!("addr replace {vip} dev {interface}\n");
    }
    commands += &format!("link set {interface} up\n");
    for gateway in &description.gateways {
        let family = if gateway.is_ipv6() { "-6 " } else { "" };
        commands += &format!("{family}route replace default via {gateway} dev {interface}\n");
    }
    commands
}

/// Drops packets to the addresses while answers still leave: without these routes, the kernel does not
/// accept packets to an address, but still sends from it.
pub fn drop_packets(description: &Description) -> Result<(), ServerError> {
    ip(&drop_routes(description))
}

fn drop_routes(description: &Description) -> String {
    let interface = interface(&description.link);
    let mut commands = String::new();
    for Vip { address, .. } in &description.vips {
        let family = if address.is_ipv6() { "-6 " } else { "" };
        commands += &format!("{family}route del local {address} dev {interface} table local\n");
    }
    commands
}

/// Takes the interface down if it exists: nothing is sent to clients any more, neither answers nor the
/// end of connections. When it is up again, packets are received again too.
pub fn lower(description: &Description) -> Result<(), ServerError> {
    let interface = interface(&description.link);
    match netns::has_interface(interface) {
        true => ip(&format!("link set {interface} down\n")),
        false => Ok(()),
    }
}

/// Removes an interface that was made, in the server's network namespace: the kernel does it
/// itself only some time after the namespace's end.
pub fn remove() -> Result<(), ServerError> {
    match netns::has_interface(INTERFACE) {
        true => ip(&format!("link del {INTERFACE}\n")),
        false => Ok(()),
    }
}

/// Removes the addresses of an interface that nlmfo did not create.
pub fn remove_vips(description: &Description) -> Result<(), ServerError> {
    let Link::Netns { interface, .. } = &description.link else {
        return Ok(());
    };
    for vip in &description.vips {
        if netns::has_address(vip.address).unwrap_or(true) {
            ip(&format!("addr del {vip} dev {interface}\n"))?;
        }
    }
    Ok(())
}

fn ip(commands: &str) -> Result<(), ServerError> {
    for line in commands.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        run_with_input("ip", &words, "")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::description::parse;

    #[test]
    fn an_interface_is_made_and_raised() {
        let text = |link: &str| {
            format!(
                "[server.mail]\nvips = [\"10.77.0.1/16\", \"fd77::1/64\"]\nlink = {link}\n\
                 gateways = [\"10.77.0.254\", \"fd77::fe\"]\n\
                 exports = [\"/srv *(fsid=1)\"]\nscope = \"m\"\nstate = \"/srv/s\"\n"
            )
        };
        let described = |link: &str| parse(&text(link)).unwrap().remove(0);
        let network = Path::new("/run/x/net");
        let macvlan = described("{ kind = \"macvlan\", parent = \"eth0\" }");
        assert_eq!(
            making(&macvlan, network),
            "link add link eth0 name nlmfo0 netns /run/x/net type macvlan mode bridge\n"
        );
        assert_eq!(
            raising(&macvlan),
            "addr replace 10.77.0.1/16 dev nlmfo0\naddr replace fd77::1/64 dev nlmfo0\n\
             link set nlmfo0 up\nroute replace default via 10.77.0.254 dev nlmfo0\n\
             -6 route replace default via fd77::fe dev nlmfo0\n"
        );
        assert_eq!(
            drop_routes(&macvlan),
            "route del local 10.77.0.1 dev nlmfo0 table local\n\
             -6 route del local fd77::1 dev nlmfo0 table local\n"
        );
        let veth = described("{ kind = \"veth\", bridge = \"br0\" }");
        let outer = making(&veth, network);
        let outer = outer.split(' ').nth(2).unwrap();
        assert!(outer.starts_with("nlmfo-") && outer.len() <= 15, "{outer}");
        let existing = described("{ kind = \"netns\", name = \"x\", interface = \"eth7\" }");
        assert_eq!(making(&existing, network), "");
        assert!(raising(&existing).contains("link set eth7 up"));
    }
}
