//! Rounds as cells, and cells as a table that people and Markdown read. Pure.

use std::fmt::Write as _;

/// What there is nothing to say about.
const NOTHING: &str = "-";

/// Median, lowest and highest of the rounds of one figure; a dash of none.
pub(super) fn cell(rounds: impl IntoIterator<Item = f64>) -> String {
    let mut rounds: Vec<f64> = rounds.into_iter().collect();
    rounds.sort_by(f64::total_cmp);
    let (Some(lowest), Some(highest)) = (rounds.first(), rounds.last()) else {
        return NOTHING.to_owned();
    };
    let middle = amount(median(&rounds));
    if rounds.len() == 1 {
        return middle;
    }
    format!("{middle} ({}-{})", amount(*lowest), amount(*highest))
}

/// The rows below their headings, columns as wide as they have to be.
pub(super) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let headings = headings.map(str::to_owned);
    let all = || std::iter::once(&headings).chain(rows);
    let width = |column: usize| {
        all()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for (at, row) in all().enumerate() {
        let cells = row.iter().zip(widths);
        let cells: String = cells
            .map(|(cell, width)| format!(" {cell:width$} |"))
            .collect();
        // A string takes everything.
        let _ = writeln!(text, "|{cells}");
        if at == 0 {
            let rule = widths.map(|width| format!("{}|", "-".repeat(width + 2)));
            let _ = writeln!(text, "|{}", rule.concat());
        }
    }
    text
}

/// The middle one of sorted numbers, or the mean of the two in the middle.
fn median(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    if sorted.len() % 2 == 1 {
        at(half)
    } else {
        f64::midpoint(at(half.saturating_sub(1)), at(half))
    }
}

/// Three digits, which is more than the rounds agree on.
fn amount(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_has_median_and_spread() {
        for (rounds, wanted) in [
            (vec![], "-"),
            (vec![1.234], "1.23"),
            (vec![3.0, 1.0, 2.0], "2.00 (1.00-3.00)"),
            (vec![30.0, 10.0], "20.0 (10.0-30.0)"),
            (vec![1234.5, 99.96, 0.001], "100.0 (0.00-1234)"),
        ] {
            assert_eq!(cell(rounds), wanted);
        }
    }

    #[test]
    fn columns_stand_below_one_another() {
        let row = |a: &str, b: &str| [a.to_owned(), b.to_owned()];
        let text = table(
            ["figure", "x"],
            &[row("p50", "12.0"), row("longer name", "-")],
        );
        let wanted = "\
| figure      | x    |
|-------------|------|
| p50         | 12.0 |
| longer name | -    |
";
        assert_eq!(text, wanted);
    }
}
