//! Tables for people: columns padded with blanks, a header, no frames.

use std::fmt;

use comfy_table::{ContentArrangement, Table as Grid, presets};

/// Rows under a header.
pub(crate) struct Table {
    grid: Grid,
}

impl Table {
    pub(crate) fn new<const N: usize>(header: [&str; N]) -> Self {
        Self::with_header(header.to_vec())
    }

    /// For a table whose columns are chosen while the program runs.
    pub(crate) fn with_header(header: Vec<&str>) -> Self {
        let mut grid = Grid::new();
        grid.load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(header);
        for column in grid.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self { grid }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.cells(cells.to_vec());
    }

    /// A row of as many cells as the header has.
    pub(crate) fn cells(&mut self, cells: Vec<String>) {
        let cells = cells.iter().map(|cell| super::clean(cell));
        self.grid.add_row(cells);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Lines are padded to the full width; nobody wants to copy that.
        for line in self.grid.lines() {
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
