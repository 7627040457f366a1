//! Rejects options that the chosen phase or scope would ignore.

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::{Phase, Scope};

/// Options that only one phase of a failover uses, by clap's ids.
const PARTS: [(&str, Phase); 17] = [
    ("record", Phase::Release),
    ("unlock_filesystem", Phase::Release),
    ("reboot_notice", Phase::Release),
    ("deadline", Phase::Release),
    ("fence", Phase::Release),
    ("no_fence", Phase::Release),
    ("nfs", Phase::Release),
    ("expect", Phase::Takeover),
    ("grace", Phase::Takeover),
    ("wait_services", Phase::Takeover),
    ("wait_address", Phase::Takeover),
    ("notify", Phase::Takeover),
    ("no_notify", Phase::Takeover),
    ("config", Phase::Takeover),
    ("scope", Phase::Takeover),
    ("filesystem", Phase::Takeover),
    ("after_fencing", Phase::Takeover),
];

/// Options of a failover that have no meaning for a whole server, which is in the kernel's own grace.
const NOT_OF_A_WHOLE_SERVER: [&str; 13] = [
    "dry_run",
    "unlock_filesystem",
    "reboot_notice",
    "fence",
    "no_fence",
    "nfs",
    "grace",
    "wait_services",
    "notify",
    "no_notify",
    "scope",
    "filesystem",
    "after_fencing",
];

/// Returns an error that names the first option that would be ignored.
pub(super) fn check(matches: &ArgMatches) -> Result<(), String> {
    let Some((name, matches)) = matches.subcommand() else {
        return Ok(());
    };
    let is_given = |id: &str| {
        matches.ids().any(|other| other == id)
            && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    let takes_filesystems = matches!(name, "failover" | "grace");
    if takes_filesystems
        && is_given("filesystem")
        && matches.get_one("scope") != Some(&Scope::Filesystem)
    {
        return Err("--filesystem requires --scope filesystem".to_owned());
    }
    match name {
        "failover" if matches.get_flag("whole_server") => {
            let phase: Option<Phase> = matches.get_one("phase").copied();
            // Whether a takeover is possible.
            let looks = phase == Some(Phase::Takeover);
            let of_vips = NOT_OF_A_WHOLE_SERVER.iter();
            let mut of_vips = of_vips.filter(|id| !(looks && **id == "dry_run"));
            match of_vips.find(|id| is_given(id)) {
                None => ignored(phase, is_given),
                Some(id) => Err(format!(
                    "--{} cannot be used with --whole-server",
                    id.replace('_', "-")
                )),
            }
        }
        "failover" => ignored(matches.get_one("phase").copied(), is_given),
        _ => Ok(()),
    }
}

fn ignored(phase: Option<Phase>, is_given: impl Fn(&str) -> bool) -> Result<(), String> {
    let Some(phase) = phase else {
        return Ok(());
    };
    let other = |(id, part): &&(&str, Phase)| *part != phase && is_given(id);
    match PARTS.iter().find(other) {
        None => Ok(()),
        Some((id, part)) => Err(format!(
            "--{} cannot be used with --phase {phase}: it applies to the {part} only",
            id.replace('_', "-")
        )),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_option_of_a_phase_is_in_the_table() {
        let command = Cli::command();
        let failover = command.find_subcommand("failover").unwrap();
        for (heading, phase) in [("Release", Phase::Release), ("Takeover", Phase::Takeover)] {
            for option in failover.get_arguments() {
                if option.get_help_heading() == Some(heading) {
                    let id = option.get_id().as_str();
                    // A dry run shows both phases.
                    let expected = (id != "dry_run").then_some(phase);
                    let found = PARTS.iter().find(|(other, _)| *other == id);
                    assert_eq!(found.map(|(_, phase)| *phase), expected, "{id}");
                }
            }
        }
        for (id, _) in PARTS {
            assert!(failover.get_arguments().any(|option| option.get_id() == id));
        }
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        let parsed = |arguments: &str| {
            let words = ["nlmfo"].into_iter().chain(arguments.split(' '));
            Cli::from_arguments(words.map(Into::into))
        };
        for right in [
            "failover --vip 10.77.0.1 --record /r --expect /r --grace 5 --fence 5",
            "failover --vip 10.77.0.1 --phase release --record /r --deadline 5 --dry-run",
            "failover --vip 10.77.0.1 --phase takeover --expect /r --grace 5 --dry-run",
            "failover --vip 10.77.0.1 --to b --record /r --fence 5 --grace 5 --no-notify",
            "failover --vip 10.77.0.1 --scope filesystem --filesystem /srv",
            "failover --whole-server",
            "failover --whole-server --phase release --vip 10.77.0.1 --record /r --deadline 5",
            "failover --whole-server --phase takeover --expect /r --wait-address 5",
            "failover --whole-server --phase takeover --dry-run",
            // As a move runs it on the other node (failover::whole::moved).
            "failover --whole-server --phase takeover --json --expect - --vip 10.77.0.1 \
             --state-dir /state --wait-address 60s --config /names",
            "failover --whole-server --to b --hand-over /move",
            "grace --vip 10.77.0.1 --for 5 --scope filesystem --filesystem /srv",
        ] {
            assert!(parsed(right).is_ok(), "{right}");
        }
        let release = "failover --vip 10.77.0.1 --phase release ";
        let takeover = "failover --vip 10.77.0.1 --phase takeover ";
        for (phase, options, named) in [
            (
                release,
                "--expect /r",
                "--expect cannot be used with --phase release",
            ),
            (release, "--grace 90s", "--grace cannot be used"),
            (release, "--wait-address 5", "--wait-address"),
            (release, "--no-notify", "--no-notify"),
            (release, "--after-fencing", "--after-fencing"),
            (release, "--scope vip", "--scope"),
            (takeover, "--record /r", "applies to the release only"),
            (takeover, "--fence 60s", "--fence"),
            (takeover, "--no-fence", "--no-fence"),
            (takeover, "--deadline 30", "--deadline"),
            (takeover, "--filesystem /srv", "--scope filesystem"),
            ("failover --vip 10.77.0.1 ", "--filesystem /srv", "--scope"),
            (
                "failover --whole-server ",
                "--nfs 3",
                "--nfs cannot be used with --whole-server",
            ),
            (
                "failover --whole-server ",
                "--grace 90s",
                "--grace cannot be used",
            ),
            (
                "failover --whole-server ",
                "--dry-run",
                "--dry-run cannot be used",
            ),
            (
                "failover --whole-server --phase takeover ",
                "--record /r",
                "applies to the release only",
            ),
            ("failover ", "--phase release", "--vip"),
            (
                "grace --vip 10.77.0.1 ",
                "--for 5 --filesystem /srv",
                "--scope",
            ),
        ] {
            let error = parsed(&format!("{phase}{options}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{options}");
            assert!(error.to_string().contains(named), "{options}: {error}");
        }
        for nobody in ["--to=", "--to b --rsh=", "--to b --remote-nlmfo="] {
            let error = parsed(&format!("failover --vip 10.77.0.1 {nobody}")).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{nobody}");
        }
    }
}
