//! The names by which a VIP's clients may know it.
//!
//! A client's statd acts on SM_NOTIFY if the name in it, or the address that it comes
//! from, resolves to the same address as the name that its lockd monitors
//! (`sm_notify_1_svc` of nfs-utils). Older statds, and those of other systems, compare the
//! name alone. So a client is notified under every likely name; with one state number for
//! all of them it acts once.
//!
//! When lockd asks statd to monitor an address, statd looks whether it has the server
//! already: by the name that the address resolves to, and by all addresses of that name
//! (`sm_mon_1_svc` and `statd_matchhostname`, nfs-utils 2.6.2 and 2.8.3). If it has, it
//! replaces the cookie by which lockd knows the server. So a client that locks through two
//! addresses of one such name can be notified of the second only.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::debug;

use super::config::Config;
use crate::foreign::is_visible;
use crate::rpc::nsm::MAX_NAME;

/// Maximum time for a reverse lookup: a name service that is down must not delay a failover.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// A name and its source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Name {
    pub name: String,
    pub from: From,
    /// For the name that the VIP's address resolves to: its other addresses.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub others: BTreeSet<IpAddr>,
}

/// The source of a name.
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
            From::Option => "--name",
            From::Configuration => "configured",
            From::ReverseLookup => "reverse lookup",
            From::Address => "address",
        }
    }
}

/// Checks whether SM_NOTIFY can carry the name.
pub fn check(name: &str) -> Result<(), String> {
    if name.is_empty() || name.chars().any(|c| c.is_whitespace() || !is_visible(c)) {
        return Err(format!("{name:?} is not a host name"));
    }
    if name.len() > MAX_NAME {
        return Err(format!("a host name has at most {MAX_NAME} bytes"));
    }
    Ok(())
}

/// The names to send to this VIP's clients: those given, and no others; otherwise those
/// configured, the result of a reverse lookup, and the address.
pub async fn of(vip: IpAddr, given: &[String], config: &Config) -> Vec<Name> {
    if !given.is_empty() {
        return collect(given, &[], None, None);
    }
    let called = reverse(vip).await;
    let mut names = collect(&[], config.names(vip), called.clone(), Some(vip));
    if let Some(called) = called {
        let mut others = addresses(called.clone()).await;
        others.retain(|other| *other != vip && !other.is_loopback());
        let is_called = |name: &&mut Name| name.name.eq_ignore_ascii_case(&called);
        if let Some(name) = names.iter_mut().find(is_called) {
            name.others = others;
        }
    }
    names
}

/// Sorted by source, each once.
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
            names.push(Name {
                name,
                from,
                others: BTreeSet::new(),
            });
        }
    }
    names
}

/// The name of the address.
async fn reverse(address: IpAddr) -> Option<String> {
    let socket = SocketAddr::new(address, 0);
    let flags = libc::NI_NAMEREQD | libc::NI_NUMERICSERV;
    match in_time(move || dns_lookup::getnameinfo(&socket, flags)).await {
        Some(Ok((name, _))) => check(&name).is_ok().then_some(name),
        nothing => {
            debug!(%address, ?nothing, "reverse lookup found no name");
            None
        }
    }
}

/// The addresses of the name; none if they cannot be found.
async fn addresses(name: String) -> BTreeSet<IpAddr> {
    let look_up = move || dns_lookup::lookup_host(&name).map(BTreeSet::from_iter);
    match in_time(look_up).await {
        Some(Ok(addresses)) => addresses,
        nothing => {
            debug!(?nothing, "the name has no addresses");
            BTreeSet::new()
        }
    }
}

/// Looks up on a thread of its own, which is left alone after [`LOOKUP_TIMEOUT`]: the resolver cannot
/// be interrupted.
async fn in_time<T: Send + 'static>(look_up: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (found, answer) = oneshot::channel();
    let work = move || {
        // The receiver is gone if it took too long.
        let _ = found.send(look_up());
    };
    if let Err(error) = thread::Builder::new().name("lookup".into()).spawn(work) {
        debug!(%error, "cannot start a thread for a lookup");
        return None;
    }
    timeout(LOOKUP_TIMEOUT, answer).await.ok()?.ok()
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
