//! Plain text tables: columns as wide as their widest cell, with two blanks between them.

use std::fmt;

/// Writes the rows under their headings. The last column is not padded.
pub fn write<const N: usize>(
    out: &mut impl fmt::Write,
    headings: [&str; N],
    rows: impl Iterator<Item = [String; N]> + Clone,
) -> fmt::Result {
    let mut widths = headings.map(str::len);
    for row in rows.clone() {
        for (width, cell) in widths.iter_mut().zip(&row) {
            *width = cell.chars().count().max(*width);
        }
    }
    line(out, &widths, headings.iter().copied())?;
    for row in rows {
        line(out, &widths, row.iter().map(String::as_str))?;
    }
    Ok(())
}

fn line<'a>(
    out: &mut impl fmt::Write,
    widths: &[usize],
    cells: impl Iterator<Item = &'a str>,
) -> fmt::Result {
    for (i, cell) in cells.enumerate() {
        out.write_str(cell)?;
        if i + 1 < widths.len() {
            // Not with a format width: widths have a limit, beyond which formatting panics.
            let padding = widths[i].saturating_sub(cell.chars().count()) + 2;
            (0..padding).try_for_each(|_| out.write_char(' '))?;
        }
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_fit_their_widest_cell() {
        let rows = [["10.77.0.1".to_owned(), "x".to_owned()]];
        let mut out = String::new();
        super::write(&mut out, ["VIP", "FILE"], rows.into_iter()).unwrap();
        assert_eq!(out, "VIP        FILE\n10.77.0.1  x\n");
    }
}
