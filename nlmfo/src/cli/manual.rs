//! What man pages say beyond the help: examples, files and exit statuses.

/// A command line, and what it does.
pub type Example = (&'static str, &'static str);

/// The examples of each command; a test parses them all.
pub const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "check",
        &[
            ("nlmfo check", "Check this node."),
            (
                "nlmfo check --vip 192.0.2.10 --wait-services 30s",
                "Wait at most 30 seconds until this node can take over a VIP. For a start script.",
            ),
        ],
    ),
    (
        "doctor",
        &[
            (
                "nlmfo doctor",
                "Show whether this node can give up or take over its VIPs now.",
            ),
            (
                "nlmfo doctor --vip 192.0.2.10 --peer nfs2",
                "Before a move to nfs2: also compare the two nodes.",
            ),
        ],
    ),
    (
        "locks",
        &[
            (
                "nlmfo locks",
                "List everything that clients hold or wait for.",
            ),
            (
                "nlmfo locks --file /srv/data/mail/box",
                "Show who holds a file.",
            ),
            (
                "nlmfo locks --filesystem /srv/data",
                "Show who holds state on a filesystem that cannot be unmounted.",
            ),
        ],
    ),
    (
        "release",
        &[
            (
                "nlmfo release --client 192.0.2.51 --dry-run",
                "Show what a release of a dead client would take.",
            ),
            (
                "nlmfo release --client 192.0.2.51",
                "Release it, and verify the release.",
            ),
        ],
    ),
    (
        "failover",
        &[
            (
                "nlmfo failover --vip 192.0.2.10 --dry-run",
                "Show the plan and change nothing.",
            ),
            (
                "nlmfo failover --vip 192.0.2.10 --phase release --record /run/cluster/vip.json",
                "On the node that gives up the VIP.",
            ),
            (
                "nlmfo failover --vip 192.0.2.10 --phase takeover --expect /run/cluster/vip.json",
                "On the node that takes over the VIP.",
            ),
            (
                "nlmfo failover --vip 192.0.2.10 --to nfs2 --hand-over /usr/local/sbin/move-nfs",
                "Do both from here, over ssh.",
            ),
            (
                "nlmfo failover --whole-server --phase release --state-dir /srv/nfs/nlmfo",
                "Stop the NFS server of this node; `--phase takeover` starts it on another one.",
            ),
        ],
    ),
    (
        "restart",
        &[
            (
                "nlmfo restart",
                "Restart the NFS server; its clients keep their locks.",
            ),
            (
                "nlmfo restart --record-only",
                "Before another program stops the server: record what clients hold.",
            ),
        ],
    ),
    (
        "server",
        &[
            ("nlmfo server list", "List the configured servers."),
            (
                "nlmfo server check mail --peer nfs2",
                "Check whether mail can start here and on nfs2, with the same configuration.",
            ),
            (
                "nlmfo server run mail",
                "Start a server and restart its daemons when they exit; for systemd.",
            ),
        ],
    ),
    (
        "grace",
        &[
            (
                "nlmfo grace --vip 192.0.2.10 --for 90s",
                "Refuse new locks through a VIP for 90 seconds.",
            ),
            ("nlmfo grace --list", "List grace windows."),
            (
                "nlmfo grace --vip 192.0.2.10 --end",
                "End the grace of a VIP.",
            ),
        ],
    ),
    (
        "notify",
        &[(
            "nlmfo notify --vip 192.0.2.10 --name nfs.example.net",
            "Notify the VIP's clients, which mount by this name.",
        )],
    ),
    (
        "clients",
        &[
            ("nlmfo clients", "List the clients of each VIP."),
            (
                "nlmfo clients --vip 192.0.2.10 --import /var/lib/nfs/sm",
                "Add the clients that statd knows to the book of a VIP.",
            ),
        ],
    ),
    (
        "serve",
        &[
            ("nlmfo serve", "Keep the client book."),
            (
                "nlmfo serve --listen 127.0.0.1:9814 --events /var/log/nlmfo.jsonl",
                "Also serve metrics, and write events to a file.",
            ),
        ],
    ),
    (
        "ha-callout",
        &[(
            "nlmfo ha-callout add-client 192.0.2.51 nfs1",
            "Print the VIPs that a client uses.",
        )],
    ),
    (
        "watch",
        &[
            ("nlmfo watch", "Show this node."),
            ("nlmfo watch --once", "Print one table."),
            (
                "nlmfo watch --replay failover.rec --speed 10",
                "Play a recording.",
            ),
        ],
    ),
    (
        "probe",
        &[
            ("nlmfo probe --list", "List the checks."),
            (
                "nlmfo probe --format junit",
                "Test the lock manager of this kernel, for a CI system.",
            ),
        ],
    ),
    (
        "cleanup",
        &[(
            "nlmfo cleanup",
            "Remove everything that nlmfo left in the kernel, including open grace windows.",
        )],
    ),
];

/// Every command has these exit statuses.
pub const EXIT_STATUSES: &[(&str, &str)] = &[
    ("0", "Done and confirmed."),
    ("1", "Could not run."),
    ("2", "Wrong usage."),
    (
        "3",
        "Ran, but the result is not confirmed: locks remain or may remain, or grace was violated.",
    ),
    ("4", "This kernel or node lacks something required."),
    (
        "5",
        "Confirmed, but some clients could not be notified or reclaims are missing.",
    ),
];

/// Files of nlmfo, by path, each with what it holds.
pub const FILES: &[(&str, &str)] = &[
    (
        "/etc/nlmfo.toml",
        "The names that clients mount by. See the example in the documentation's directory.",
    ),
    (
        "/var/lib/nlmfo",
        "The client book and the state numbers. The nodes of a cluster should share it.",
    ),
    (
        "/run/nlmfo",
        "Lock files, and the report of the last failover of each VIP.",
    ),
];

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_command_has_examples_that_are_right() {
        let command = Cli::command();
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let name = sub.get_name();
            let examples = EXAMPLES.iter().find(|(command, _)| *command == name);
            let (_, examples) = examples.unwrap_or_else(|| panic!("no example of {name}"));
            assert!(!examples.is_empty(), "{name}");
            for (line, _) in *examples {
                assert!(line.starts_with(&format!("nlmfo {name}")), "{line}");
                let words = line.split_whitespace().map(Into::into);
                Cli::from_arguments(words).unwrap_or_else(|error| panic!("{line}: {error}"));
            }
        }
    }
}
