//! Reading what `nlmfo probe --format json` says of one kernel.

use anyhow::{Context as _, Result, ensure};
use nlmfo_common::probe::{Report, SCHEMA};

pub fn parse(json: &[u8]) -> Result<Report> {
    let report: Report = serde_json::from_slice(json)
        .with_context(|| format!("read the output of nlmfo probe as {SCHEMA}"))?;
    ensure!(
        report.schema == SCHEMA,
        "nlmfo probe printed {}, not {SCHEMA}",
        report.schema
    );
    ensure!(!report.checks.is_empty(), "nlmfo probe made no check");
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_schema_and_no_checks_are_refused() {
        let with = |schema: &str, checks: &str| {
            parse(
                format!(
                    r#"{{"schema":"{schema}","kernel":"6.1.0-50","source":"6.1.176","nlmfo":"0.1.0","seconds":1,"checks":{checks}}}"#
                )
                .as_bytes(),
            )
        };
        let check = r#"[{"name":"a","proves":"b","verdict":"pass","seconds":0.1}]"#;
        assert!(with(SCHEMA, check).is_ok());
        assert!(with("nlmfo.probe/2", check).is_err());
        assert!(with(SCHEMA, "[]").is_err());
        assert!(with(SCHEMA, &check.replace("pass", "perhaps")).is_err());
    }
}
