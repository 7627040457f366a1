//! nfs-utils' configuration, as far as its `sm-notify` is concerned: `/etc/nfs.conf`, then
//! `/etc/nfs.conf.d/*.conf`, of which the last word counts.
//!
//! Read as nfs-utils 2.6 reads it (support/nfs/conffile.c): names and sections without
//! case; `#` and `;` begin a comment; values may be quoted; a line that ends with `\` goes
//! on; a last line without its end is passed over; `include = FILE` reads another file
//! there, relative to the file it stands in; a value `$NAME` is that of `[environment]`.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const MAIN: &str = "/etc/nfs.conf";
const FOLDER: &str = "/etc/nfs.conf.d";

/// Files that include each other have an end somewhere.
const DEEPEST: usize = 16;

/// What is set, by section and name in lower case. Subsections are not kept: sm-notify
/// has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NfsConf(HashMap<(String, String), String>);

impl NfsConf {
    /// This node's.
    pub fn of_node() -> io::Result<Self> {
        let mut files = vec![PathBuf::from(MAIN)];
        match fs::read_dir(FOLDER) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            entries => {
                let paths = entries?.map(|entry| entry.map(|entry| entry.path()));
                let mut paths = paths.collect::<io::Result<Vec<_>>>()?;
                paths.retain(|path| is_part(path));
                paths.sort_unstable();
                files.extend(paths);
            }
        }
        Ok(NfsConf::read(&files, &|path| fs::read(path).ok()))
    }

    /// From files in their order, given what is in each file, if it is there.
    pub fn read(files: &[PathBuf], contents: &dyn Fn(&Path) -> Option<Vec<u8>>) -> Self {
        let mut conf = NfsConf::default();
        for file in files {
            conf.file(file, None, contents, 0);
        }
        conf
    }

    /// Whether sm-notify lifts lockd's grace early: it does unless it is told not to
    /// (nfs.conf(5)). A value that is neither yes nor no leaves it at that.
    pub fn lifts_grace(&self) -> bool {
        const NO: [&str; 6] = ["0", "f", "false", "n", "no", "off"];
        let value = self.get("sm-notify", "lift-grace").unwrap_or_default();
        !NO.iter().any(|no| value.eq_ignore_ascii_case(no))
    }

    fn get(&self, section: &str, name: &str) -> Option<&str> {
        let find = |section: &str, name: &str| {
            let key = (section.to_owned(), name.to_ascii_lowercase());
            self.0.get(&key).map(String::as_str)
        };
        let value = find(section, name)?;
        match value.strip_prefix('$') {
            Some(name) => find("environment", name),
            None => Some(value),
        }
    }

    /// One file, which begins in the section of the `include` that named it. A section
    /// that begins in it ends with it.
    fn file(
        &mut self,
        path: &Path,
        section: Option<String>,
        contents: &dyn Fn(&Path) -> Option<Vec<u8>>,
        depth: usize,
    ) {
        let Some(text) = contents(path).filter(|_| depth < DEEPEST) else {
            return;
        };
        let text = String::from_utf8_lossy(&text).replace("\\\n", "  ");
        // What follows the last line's end is no line.
        let lines = text.split('\n').count() - 1;
        let mut section = section;
        for line in text.split('\n').take(lines) {
            match Line::parse(line) {
                Line::Nothing => {}
                Line::Section(name) => section = name,
                Line::Set { name, value } => {
                    let Some(section) = &section else {
                        continue;
                    };
                    if name.eq_ignore_ascii_case("include") {
                        // With a dash in front it need not be there.
                        let file = value.strip_prefix('-').unwrap_or(value);
                        let file = path.parent().unwrap_or(Path::new("/")).join(file);
                        self.file(&file, Some(section.clone()), contents, depth + 1);
                    } else if !value.is_empty() {
                        let key = (section.clone(), name.to_ascii_lowercase());
                        self.0.insert(key, value.to_owned());
                    }
                }
            }
        }
    }
}

/// Editors' copies and packages' leavings are not read.
fn is_part(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| !name.starts_with('.') && name.ends_with(".conf"))
}

#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    /// In lower case; none for a subsection or a heading that is none, whose settings are
    /// nobody's here.
    Section(Option<String>),
    Set {
        name: &'a str,
        value: &'a str,
    },
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        let line = line.trim_start_matches([' ', '\t']);
        if line.starts_with(['#', ';']) {
            return Line::Nothing;
        }
        if let Some(heading) = line.strip_prefix('[') {
            let name = heading.split_once(']').map(|(name, _)| name.trim());
            let name = name.filter(|name| !name.is_empty() && !name.contains('"'));
            return Line::Section(name.map(str::to_ascii_lowercase));
        }
        let Some((name, value)) = line.split_once('=') else {
            return Line::Nothing;
        };
        let (name, value) = (name.trim_end(), value.trim_start_matches([' ', '\t']));
        let value = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => value[1..].split_once(quote).map(|(value, _)| value),
            _ => value.split(['#', ';']).next().map(str::trim_end),
        };
        match value {
            Some(value) if !name.is_empty() => Line::Set { name, value },
            _ => Line::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files of the map, of which those named are read.
    fn read(files: &[&str], texts: &[(&str, &str)]) -> NfsConf {
        let texts: HashMap<PathBuf, Vec<u8>> = texts
            .iter()
            .map(|(path, text)| (PathBuf::from(path), text.as_bytes().to_vec()))
            .collect();
        let files: Vec<PathBuf> = files.iter().map(PathBuf::from).collect();
        NfsConf::read(&files, &|path| texts.get(path).cloned())
    }

    fn lifts(text: &str) -> bool {
        read(&["/etc/nfs.conf"], &[("/etc/nfs.conf", text)]).lifts_grace()
    }

    #[test]
    fn grace_is_lifted_unless_forbidden_in_the_right_section() {
        for (text, lifted) in [
            ("", true),
            ("[sm-notify]\nlift-grace=n\n", false),
            ("[sm-notify]\n# lift-grace=n\n", true),
            ("[sm-notify]\n;lift-grace=n\n", true),
            ("[SM-Notify]\n\tLift-Grace = NO  # ours\n", false),
            ("  [ sm-notify ]  \nlift-grace\t=\t'off' ; ours\n", false),
            ("[sm-notify]\nlift-grace = \"0\"\n", false),
            ("[sm-notify]\nlift-grace = \"0\n", true),
            ("[sm-notify]\nlift-grace = never\n", true),
            ("[sm-notify]\nlift-grace = n\nlift-grace = y\n", true),
            ("[sm-notify]\nlift-grace = n\nlift-grace =\n", false),
            ("[statd]\nlift-grace = n\n", true),
            ("lift-grace = n\n", true),
            ("[sm-notify \"a\"]\nlift-grace = n\n", true),
            ("[sm-notify\nlift-grace = n\n", true),
            ("[sm-notify]\n[statd]\n[sm-notify]\nlift-grace = n\n", false),
            ("[sm-notify]\nlift-grace = \\\nn\n", false),
            ("[sm-notify]\n# a comment \\\nlift-grace = n\n", true),
            (
                "[sm-notify]\nlift-grace = $LIFT\n[environment]\nLIFT = n\n",
                false,
            ),
            ("[sm-notify]\nlift-grace = $LIFT\n", true),
            // Without its end the line is not read.
            ("[sm-notify]\nlift-grace = n", true),
        ] {
            assert_eq!(lifts(text), lifted, "{text:?}");
        }
    }

    #[test]
    fn later_files_have_the_last_word() {
        let files = [
            "/etc/nfs.conf",
            "/etc/nfs.conf.d/a.conf",
            "/etc/nfs.conf.d/b.conf",
        ];
        let yes = "[sm-notify]\nlift-grace=y\n";
        let no = "[sm-notify]\nlift-grace=n\n";
        for (texts, lifted) in [
            ([no, yes, ""], true),
            ([yes, no, ""], false),
            ([no, yes, no], false),
        ] {
            let texts: Vec<_> = files.into_iter().zip(texts).collect();
            assert_eq!(read(&files, &texts).lifts_grace(), lifted, "{texts:?}");
        }
    }

    #[test]
    fn an_included_file_stands_where_it_is_named() {
        let main = "[sm-notify]\ninclude = local.conf\ninclude=-/nowhere\nretry-time=9\n";
        let conf = read(
            &["/etc/nfs.conf"],
            &[
                ("/etc/nfs.conf", main),
                ("/etc/local.conf", "lift-grace=n\n[statd]\nport=1\n"),
            ],
        );
        assert!(!conf.lifts_grace());
        assert_eq!(conf.get("statd", "port"), Some("1"));
        // The section that it began was its own.
        assert_eq!(conf.get("sm-notify", "retry-time"), Some("9"));
    }

    #[test]
    fn a_file_that_includes_itself_has_an_end() {
        let text = "[sm-notify]\ninclude = nfs.conf\nlift-grace = n\n";
        assert!(!lifts(text));
    }

    #[test]
    fn only_files_of_the_right_name_are_parts() {
        for (path, part) in [
            ("/etc/nfs.conf.d/local.conf", true),
            ("/etc/nfs.conf.d/local.conf~", false),
            ("/etc/nfs.conf.d/.local.conf", false),
            ("/etc/nfs.conf.d/README", false),
        ] {
            assert_eq!(is_part(Path::new(path)), part, "{path}");
        }
    }
}
