use super::*;

#[test]
fn the_arguments_are_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
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
