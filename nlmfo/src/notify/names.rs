//! Which names a VIP's clients may know it by.
//!
//! A client's statd acts on SM_NOTIFY if the name in it, or the address that it comes
//! from, resolves to the same address as the name that its lockd monitors
//! (`sm_notify_1_svc` of nfs-utils). Older statds, and those of other systems, compare the
//! name alone. So a client is told under every likely name; with one state number for
//! all of them it acts once.

use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::debug;

use super::config::Config;
use crate::rpc::nsm::MAX_NAME;

/// How long a reverse lookup may take: a name service that is down must not hold a
/// failover up.
const PATIENCE: Duration = Duration::from_secs(2);

/// A name, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Name {
    pub name: String,
    pub from: From,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum From {
    Option,
    Configuration,
    ReverseLookup,
    Address,
}

impl From {
    pub fn words(self) -> &'static str {
        match self {
            From::Option => "as told",
            From::Configuration => "from the configuration",
            From::ReverseLookup => "from a reverse lookup",
            From::Address => "its address",
        }
    }
}

/// What can stand in SM_NOTIFY as a name.
pub fn check(name: &str) -> Result<(), String> {
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(format!("{name:?} is no name of a host"));
    }
    if name.len() > MAX_NAME {
        return Err(format!("a name of a host has at most {MAX_NAME} bytes"));
    }
    Ok(())
}

/// The names to tell this VIP's clients: those given, and no others; else those
/// configured, what its address is called, and the address.
pub async fn of(vip: IpAddr, given: &[String], config: &Config) -> Vec<Name> {
    if !given.is_empty() {
        return collect(given, &[], None, None);
    }
    let called = reverse(vip).await;
    collect(&[], config.names(vip), called, Some(vip))
}

/// In the order of their rank, each once.
fn collect(
    given: &[String],
    configured: &[String],
    called: Option<String>,
    address: Option<IpAddr>,
) -> Vec<Name> {
    let given = given.iter().map(|name| (name.clone(), From::Option));
    let configured = (configured.iter()).map(|name| (name.clone(), From::Configuration));
    let called = called.map(|name| (name, From::ReverseLookup));
    let address = address.map(|address| (address.to_string(), From::Address));
    let mut names: Vec<Name> = Vec::new();
    for (name, from) in given.chain(configured).chain(called).chain(address) {
        if !names
            .iter()
            .any(|known| known.name.eq_ignore_ascii_case(&name))
        {
            names.push(Name { name, from });
        }
    }
    names
}

/// What the address is called. By a thread of its own, that nobody waits for when the
/// time is up: getnameinfo(3) cannot be interrupted.
async fn reverse(address: IpAddr) -> Option<String> {
    let (found, answer) = oneshot::channel();
    let socket = SocketAddr::new(address, 0);
    let look_up = move || {
        let flags = libc::NI_NAMEREQD | libc::NI_NUMERICSERV;
        // Nobody listens any more if it took too long.
        let _ = found.send(dns_lookup::getnameinfo(&socket, flags));
    };
    if let Err(error) = thread::Builder::new().name("lookup".into()).spawn(look_up) {
        debug!(%error, "no thread for a reverse lookup");
        return None;
    }
    let name = match timeout(PATIENCE, answer).await {
        Ok(Ok(Ok((name, _)))) => name,
        nothing => {
            debug!(%address, ?nothing, "no name by reverse lookup");
            return None;
        }
    };
    check(&name).is_ok().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(names: &[Name]) -> Vec<(&str, From)> {
        let texts = names.iter().map(|name| (name.name.as_str(), name.from));
        texts.collect()
    }

    #[test]
    fn every_likely_name_is_told_once() {
        let vip = Some("10.77.0.1".parse().unwrap());
        let configured = ["nfs1.example".to_owned(), "nfs1".to_owned()];
        let names = collect(&[], &configured, Some("NFS1.example".into()), vip);
        assert_eq!(
            texts(&names),
            [
                ("nfs1.example", From::Configuration),
                ("nfs1", From::Configuration),
                ("10.77.0.1", From::Address),
            ]
        );
        let names = collect(&[], &[], Some("nfs1".into()), vip);
        assert_eq!(
            texts(&names),
            [("nfs1", From::ReverseLookup), ("10.77.0.1", From::Address)]
        );
    }

    #[tokio::test]
    async fn names_that_are_given_replace_all_others() {
        let vip = "127.0.0.1".parse().unwrap();
        let given = ["a".to_owned(), "b".to_owned(), "a".to_owned()];
        let names = of(vip, &given, &Config::default()).await;
        assert_eq!(texts(&names), [("a", From::Option), ("b", From::Option)]);
    }

    #[tokio::test]
    async fn the_address_is_always_among_the_others() {
        // TEST-NET-1, which has no name.
        let vip = "192.0.2.1".parse().unwrap();
        let names = of(vip, &[], &Config::default()).await;
        assert_eq!(texts(&names).last(), Some(&("192.0.2.1", From::Address)));
    }

    #[test]
    fn a_name_has_no_blanks_and_an_end() {
        assert!(check("nfs1.example").is_ok() && check("fe80::1%eth0").is_ok());
        for wrong in ["", "a b", "a\n", &"a".repeat(1025)] {
            assert!(check(wrong).is_err(), "{wrong:?}");
        }
    }
}
