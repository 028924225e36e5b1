//! Tables for the start-up log, framed as tritonserver frames them.

/// Lines of a table with a head. A cell of several lines takes as many.
pub fn frame<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let lines_of = |row: &[String; N]| -> Vec<[String; N]> {
        let cells = row.each_ref().map(|cell| cell.trim_end().split('\n').collect::<Vec<_>>());
        let height = cells.iter().map(Vec::len).max().unwrap_or(0);
        let line = |number: usize| {
            cells.each_ref().map(|cell| cell.get(number).copied().unwrap_or_default().to_owned())
        };
        (0..height).map(line).collect()
    };
    let rows: Vec<[String; N]> = rows.iter().flat_map(lines_of).collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let rule =
        widths.iter().fold("+".to_owned(), |rule, width| rule + &"-".repeat(width + 2) + "+");
    let line = |cells: [&str; N]| {
        cells.iter().zip(widths).fold("|".to_owned(), |line, (cell, width)| {
            let padding = width - cell.chars().count();
            line + " " + cell + &" ".repeat(padding) + " |"
        })
    };
    let mut lines = vec![rule.clone(), line(head), rule.clone()];
    lines.extend(rows.iter().map(|row| line(row.each_ref().map(String::as_str))));
    lines.push(rule);
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let table = frame(["Model", "V"], &[["a-long-name".into(), "1".into()]]);
        let expected = "+-------------+---+\n| Model       | V |\n+-------------+---+\n\
                        | a-long-name | 1 |\n+-------------+---+";
        assert_eq!(table, expected);
    }
    #[test]
    fn a_cell_of_several_lines_stays_in_its_column() {
        let table = frame(["Model", "Status"], &[["m".into(), "it failed:\nline 1\n".into()]]);
        let expected = "+-------+------------+\n| Model | Status     |\n+-------+------------+\n\
                        | m     | it failed: |\n|       | line 1     |\n+-------+------------+";
        assert_eq!(table, expected);
    }
}
