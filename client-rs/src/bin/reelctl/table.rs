//! Text for people: columns that line up, and numbers with units.
//!
//! What the columns mean is known to the commands.

/// Rows of cells, the first being the headings, as lines. The first column is aligned to the left, all
/// others, which hold numbers, to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    table_with_text(rows, &[0])
}

/// The same, where these columns hold text, which is aligned to the left.
pub(crate) fn table_with_text(rows: &[Vec<String>], text_columns: &[usize]) -> String {
    let column_count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..column_count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let gap = if column == 0 { "" } else { "  " };
            line += gap;
            line += &match text_columns.contains(&column) {
                true => format!("{cell:<width$}"),
                false => format!("{cell:>width$}"),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// A row from anything that can be shown.
pub(crate) fn row<const N: usize>(cells: [&dyn ToString; N]) -> Vec<String> {
    cells.iter().map(|cell| cell.to_string()).collect()
}

/// Bytes with a unit.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// A duration with its two largest units.
pub(crate) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {minutes} min"),
        (_, _, _) => format!("{days} d {hours} h"),
    }
}

/// The same, short enough for a column.
pub(crate) fn short_duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m{:02}s", seconds % 60),
        (0, _, _) => format!("{hours}h{minutes:02}m"),
        (_, _, _) => format!("{days}d{hours:02}h"),
    }
}

/// Text cut to so many characters, keeping its end.
pub(crate) fn tail(text: &str, chars_max: usize) -> String {
    let count = text.chars().count();
    if count <= chars_max {
        return text.to_owned();
    }
    let kept = chars_max.saturating_sub(1);
    format!("…{}", text.chars().skip(count - kept).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [row([&"name", &"bytes"]), row([&"a", &12345])];
        assert_eq!(table(&rows), "name  bytes\na     12345\n");
    }

    #[test]
    fn sizes_and_durations_have_fitting_units() {
        assert_eq!(
            [size(12), size(1536), size(3 << 20), size(5 << 40)],
            ["12 B", "1.5 KiB", "3.0 MiB", "5.0 TiB"]
        );
        assert_eq!(
            [short_duration(5), short_duration(65), short_duration(3_700), short_duration(90_000)],
            ["5s", "1m05s", "1h01m", "1d01h"]
        );
        assert_eq!([duration(5), duration(65), duration(90_000)], ["5 s", "1 min 5 s", "1 d 1 h"]);
    }
}
