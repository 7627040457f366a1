use super::*;

#[test]
fn the_arguments_are_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn addresses_are_taken_in_one_form_only() {
    let v4: IpAddr = "10.77.0.1".parse().unwrap();
    assert_eq!(address("10.77.0.1"), Ok(v4));
    assert_eq!(address("::ffff:10.77.0.1"), Ok(v4));
    assert_eq!(address("fd77::1"), Ok("fd77::1".parse().unwrap()));
}

#[test]
fn what_is_no_address_says_what_to_give() {
    for (text, hint) in [
        ("", "an address is needed"),
        ("nfs1.example", "names are not looked up"),
        ("10.77.0.1/24", "without its prefix length: 10.77.0.1"),
        ("fd77::1/64", "without its prefix length: fd77::1"),
        ("10.77.0.1:2049", "without the port: 10.77.0.1"),
        ("[fd77::1]:2049", "without the port: fd77::1"),
        ("[fd77::1]", "without brackets"),
        ("fe80::1%eth0", "no scope"),
        ("10.77.1", "names are not looked up"),
        ("10.77.0.1 10.77.0.2", "names are not looked up"),
        ("0.0.0.0", "no client can reach"),
        ("::", "no client can reach"),
        ("224.0.0.1", "no client can reach"),
    ] {
        let error = address(text).unwrap_err();
        assert!(error.contains(hint), "{text}: {error}");
    }
}

#[test]
fn seconds_are_positive_and_sane() {
    assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
    for wrong in ["0", "-1", "nan", "inf", "1e9", "soon"] {
        assert!(seconds(wrong).is_err(), "{wrong}");
    }
}
#[test]
fn times_have_units() {
    for (text, seconds) in [("90", 90), ("90s", 90), ("2m", 120), ("1h", 3600)] {
        assert_eq!(time(text), Ok(Duration::from_secs(seconds)), "{text}");
    }
    assert_eq!(time("0.5s"), Ok(Duration::from_millis(500)));
    for wrong in ["", "s", "0", "-1s", "25h", "nans", "90 s", "1d"] {
        assert!(time(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn grace_does_one_thing_at_a_time() {
    let parsed = |arguments: &str| {
        Cli::try_parse_from(["nlmfo", "grace"].into_iter().chain(arguments.split(' ')))
    };
    for right in [
        "--vip 10.77.0.1 --for 90s",
        "--vip 10.77.0.1 --vip fd77::1 --for 90s --scope filesystem --filesystem /srv",
        "--end --vip 10.77.0.1",
        "--list",
        "--list --vip 10.77.0.1 --json",
    ] {
        assert!(parsed(right).is_ok(), "{right}");
    }
    for wrong in [
        "--vip 10.77.0.1",
        "--for 90s",
        "--end",
        "--vip 10.77.0.1 --for 90s --end",
        "--vip 10.77.0.1 --for 90s --scope filesystem",
        "--list --filesystem /srv",
    ] {
        assert!(parsed(wrong).is_err(), "{wrong}");
    }
}
