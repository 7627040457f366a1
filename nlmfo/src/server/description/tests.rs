use super::*;

const MAIL: &str = r#"
    [server.mail]
    vips       = ["10.77.0.1/16", "fd77::1/64"]
    link       = { kind = "macvlan", parent = "eth0" }
    filesystem = { device = "/dev/drbd0", path = "/srv/mail", type = "ext4", options = "noatime" }
    exports    = ["/srv/mail *(rw,no_subtree_check,fsid=1)"]
    scope      = "mail-nfs"
    state      = "/srv/mail/.nlmfo"
"#;

#[test]
fn a_description_has_defaults() {
    let [mail] = &parse(MAIL).unwrap()[..] else {
        panic!("one server");
    };
    assert_eq!((&*mail.name, &*mail.scope), ("mail", "mail-nfs"));
    assert_eq!(mail.vips[1].to_string(), "fd77::1/64");
    assert_eq!(mail.versions, Version::ALL);
    assert_eq!(
        (mail.threads, mail.lease.as_secs(), mail.grace.as_secs()),
        (8, 15, 60)
    );
    assert_eq!(mail.filesystems[0].options, "noatime");
    assert_eq!(mail.exported().next(), Some(Path::new("/srv/mail")));
    assert!(mail.serves_v3() && mail.serves_v4());
}

#[test]
fn several_filesystems_and_some_versions() {
    let text = MAIL.replace("filesystem = {", "filesystem = [{").replace(
        "\"noatime\" }",
        "\"\" }, { device = \"/dev/b\", path = \"/srv/b\", type = \"xfs\" }]\nversions = [4.2, 4.1, 4]",
    );
    let mail = parse(&text).unwrap().remove(0);
    assert_eq!(mail.filesystems[1].kind, "xfs");
    assert_eq!(mail.versions, &Version::ALL[1..]);
    let none = MAIL.replace("filesystem =", "# ");
    assert!(parse(&none).unwrap()[0].filesystems.is_empty());
    assert!(parse("[vip.\"10.77.0.1\"]\nnames = []").unwrap().is_empty());
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (from, to, words) in [
        ("vips ", "vip ", &["unknown field `vip`", "line"][..]),
        (
            "10.77.0.1/16",
            "10.77.0.1",
            &["server.mail.vips", "prefix length"],
        ),
        (
            "10.77.0.1/16",
            "10.77.0.1/33",
            &["server.mail.vips", "prefix length"],
        ),
        ("\"macvlan\"", "\"bridge\"", &["macvlan", "netns", "line"]),
        ("parent", "parnt", &["parnt", "line"]),
        ("fsid=1", "sync", &["server.mail.exports", "no fsid="]),
        (
            "/srv/mail *",
            "srv/mail *",
            &["server.mail.exports", "exports(5)"],
        ),
        (
            "\"mail-nfs\"",
            "\"mail nfs\"",
            &["server.mail.scope", "host name"],
        ),
        (
            "\"/srv/mail/.nlmfo\"",
            "\".nlmfo\"",
            &["server.mail.state", "absolute"],
        ),
        (
            "\"/srv/mail\", type",
            "\"/srv/../mail\", type",
            &["server.mail.filesystem"],
        ),
        (
            "server.mail",
            "server.Mail",
            &["server.Mail.NAME", "a to z"],
        ),
        (
            "server.mail",
            "server.node",
            &["server.node.NAME", "own server"],
        ),
        (
            "scope ",
            "versions = [2]\nscope ",
            &["server.mail.versions", "4.2"],
        ),
        (
            "scope ",
            "lease = \"5s\"\nscope ",
            &["server.mail.lease", "10 to 3600"],
        ),
        (
            "scope ",
            "lease = \"90s\"\nscope ",
            &["server.mail.grace", "shorter"],
        ),
        ("scope ", "threads = 0\nscope ", &["server.mail.threads"]),
    ] {
        let text = MAIL.replacen(from, to, 1);
        assert_ne!(text, MAIL, "{from}");
        let error = parse(&text).unwrap_err();
        assert!(
            words.iter().all(|word| error.contains(word)),
            "{to}: {error}"
        );
    }
}

#[test]
fn servers_have_nothing_in_common() {
    let other = MAIL
        .replace("server.mail", "server.data")
        .replace("10.77.0.1/", "10.77.0.2/")
        .replace("fd77::1/", "fd77::2/")
        .replace("drbd0", "drbd1")
        .replace("mail-nfs", "data-nfs")
        .replace("/srv/mail/.nlmfo", "/srv/data/.nlmfo");
    let both = |other: &str| {
        let found = parse(&[MAIL, other].concat()).unwrap().into_iter();
        ensure_apart(&found.map(|one| (one.name.clone(), one)).collect())
    };
    both(&other).unwrap();
    for (from, to) in [
        ("10.77.0.2/16", "10.77.0.1/24"),
        ("drbd1", "drbd0"),
        ("data-nfs", "MAIL-nfs"),
        ("/srv/data/.nlmfo", "/srv/mail/.nlmfo"),
    ] {
        let error = both(&other.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains("data and mail"), "{error}");
    }
}
