//! Parsers for option values, one per kind of value.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::notify::names;

/// An address as lockd stores it: no name, prefix, port or scope. An IPv4-mapped
/// IPv6 address becomes an IPv4 address.
pub(super) fn address(text: &str) -> Result<IpAddr, String> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return unicast(ip.to_canonical());
    }
    let hint = if let Some((ip, _)) = text.split_once('/')
        && ip.parse::<IpAddr>().is_ok()
    {
        format!("give the address without its prefix length: {ip}")
    } else if let Ok(socket) = text.parse::<SocketAddr>() {
        format!("give the address without the port: {}", socket.ip())
    } else if let Some((ip, _)) = text.split_once('%')
        && ip.parse::<IpAddr>().is_ok()
    {
        format!("lockd stores no scope; give the address without it: {ip}")
    } else if text.starts_with('[') {
        "give an IPv6 address without brackets".to_owned()
    } else if text.is_empty() {
        "give an address, like 192.0.2.1 or 2001:db8::1".to_owned()
    } else if text.contains([',', ' ']) {
        "give the option once for each address".to_owned()
    } else {
        "nlmfo does not look up names; give the address, like 192.0.2.1 or 2001:db8::1".to_owned()
    };
    Err(format!("not an IP address; {hint}"))
}

fn unicast(ip: IpAddr) -> Result<IpAddr, String> {
    let is_broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    if ip.is_unspecified() || ip.is_multicast() || is_broadcast {
        return Err("not a unicast address".to_owned());
    }
    Ok(ip)
}

/// An [`address`] that can move between nodes. Link-local addresses can.
pub(super) fn vip(text: &str) -> Result<IpAddr, String> {
    match address(text)? {
        ip if ip.is_loopback() => Err(
            "a loopback address cannot move to another node; give the address that clients mount"
                .to_owned(),
        ),
        ip => Ok(ip),
    }
}

/// A node to run a command on. ssh would take a leading `-` for an option.
pub(super) fn host(text: &str) -> Result<String, String> {
    match text {
        "" => Err("give the name or address of a node".to_owned()),
        text if text.starts_with('-') => Err("a node name cannot begin with -".to_owned()),
        text => Ok(text.to_owned()),
    }
}

/// A non-empty word, in any encoding.
pub(super) fn not_empty(text: OsString) -> Result<OsString, &'static str> {
    match text.is_empty() {
        true => Err("the value is empty"),
        false => Ok(text),
    }
}

pub(super) fn name(text: &str) -> Result<String, String> {
    names::check(text).map(|()| text.to_owned())
}

/// The longest time that an option accepts.
const LONGEST: Duration = Duration::from_hours(24);

/// A number of seconds, or numbers with units.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let is_bare = text.ends_with(|last: char| last.is_ascii_digit());
    let with_unit = match is_bare {
        true => format!("{text}s"),
        false => text.to_owned(),
    };
    match humantime::parse_duration(&with_unit) {
        Ok(time) if !time.is_zero() && time <= LONGEST => Ok(time),
        _ => Err("give a time like 90, 90s or 1m30s: more than 0, at most 24h".to_owned()),
    }
}

/// A [`time`] of at least 0.1 s.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    match time(text)? {
        interval if interval < Duration::from_millis(100) => Err("give at least 0.1 s".to_owned()),
        interval => Ok(interval),
    }
}

pub(super) fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if (0.0625..=1024.0).contains(&speed) => Ok(speed),
        _ => Err("give a number from 0.0625 to 1024".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_in_one_form_only() {
        let v4: IpAddr = "10.77.0.1".parse().unwrap();
        for parse in [address, vip] {
            assert_eq!(parse("10.77.0.1"), Ok(v4));
            assert_eq!(parse("::ffff:10.77.0.1"), Ok(v4));
            for text in ["fd77::1", "169.254.7.1", "fe80::1"] {
                assert_eq!(parse(text), Ok(text.parse().unwrap()));
            }
        }
    }

    #[test]
    fn what_is_no_address_says_what_to_give() {
        for (text, hint) in [
            ("", "give an address"),
            ("nfs1.example", "does not look up names"),
            ("10.77.0.1/24", "without its prefix length: 10.77.0.1"),
            ("fd77::1/64", "without its prefix length: fd77::1"),
            ("10.77.0.1:2049", "without the port: 10.77.0.1"),
            ("[fd77::1]:2049", "without the port: fd77::1"),
            ("[fd77::1]", "without brackets"),
            ("fe80::1%eth0", "no scope"),
            ("10.77.1", "does not look up names"),
            ("10.77.0.1 10.77.0.2", "the option once for each"),
            ("10.77.0.1,10.77.0.2", "the option once for each"),
            ("0.0.0.0", "not a unicast address"),
            ("::", "not a unicast address"),
            ("::ffff:0.0.0.0", "not a unicast address"),
            ("224.0.0.1", "not a unicast address"),
            ("ff02::1", "not a unicast address"),
            ("255.255.255.255", "not a unicast address"),
        ] {
            for parse in [address, vip] {
                let error = parse(text).unwrap_err();
                assert!(error.contains(hint), "{text}: {error}");
            }
        }
    }

    #[test]
    fn a_client_may_be_this_machine_and_a_vip_may_not() {
        for text in ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1"] {
            assert!(address(text).is_ok(), "{text}");
            let error = vip(text).unwrap_err();
            assert!(error.contains("loopback"), "{text}: {error}");
        }
    }

    #[test]
    fn times_are_seconds_or_have_units() {
        for (text, milliseconds) in [
            ("90", 90_000),
            ("90s", 90_000),
            ("0.5", 500),
            ("0.5s", 500),
            ("500ms", 500),
            ("2m", 120_000),
            ("1m30s", 90_000),
            ("24h", 86_400_000),
        ] {
            let time = time(text);
            assert_eq!(time, Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for wrong in [
            "",
            "s",
            "0",
            "0s",
            "-1",
            "-1s",
            "25h",
            "2M",
            "nan",
            "nans",
            "inf",
            "1e9",
            "soon",
            "90,5",
            "999999999999999999999999",
        ] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
