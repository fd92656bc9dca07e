//! The frame of `meshctl top`: a line for all, a table of hosts, a table of GPUs. Pure.

use mesh_proto::share::Gpu;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Paragraph, Row as Cells, Table};

use super::state::{Row, State};
use crate::output::{bytes, clean};

pub(super) fn draw(frame: &mut Frame<'_>, state: &State) {
    let rows = state.rows();
    let gpus = gpus(&rows);
    let n_hosts = u16::try_from(rows.len()).unwrap_or(u16::MAX);
    let n_gpus = u16::try_from(gpus.len()).unwrap_or(u16::MAX);
    let [head, hosts, cards, foot] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Max(n_hosts.saturating_add(2)),
        Constraint::Min(if n_gpus == 0 { 0 } else { 3 }),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(Line::raw(summary(state)), head);
    frame.render_widget(host_table(&rows), hosts);
    if !gpus.is_empty() {
        frame.render_widget(gpu_table(&gpus), cards);
    }
    let words = match &state.trouble {
        Some(trouble) => format!("no answer: {}", clean(trouble)),
        None => format!("q quit   s sort (by {})", state.order().words()),
    };
    frame.render_widget(Paragraph::new(words).style(dim()), foot);
}

/// All hosts in one line.
pub(crate) fn summary(state: &State) -> String {
    let sum = state.sum();
    format!(
        "Hosts {} of {}   requests {} in work of {}, {} waiting   {} tokens/s   GPUs {}",
        sum.n_online,
        sum.n_hosts,
        sum.n_active,
        sum.n_slots,
        sum.n_queued,
        pace(Some(sum.tokens_per_second)),
        sum.n_gpus
    )
}

fn host_table<'a>(rows: &[&'a Row]) -> Table<'a> {
    let header = [
        "HOST",
        "OWNER",
        "STATE",
        "IN WORK",
        "WAITING",
        "TOKENS/S",
        "MODELS",
        "IN MEMORY",
    ];
    let cells = rows.iter().map(|row| {
        let style = if row.host.is_online {
            Style::new()
        } else {
            dim()
        };
        Cells::new(host_cells(row).map(Cell::from)).style(style)
    });
    let widths = [
        Constraint::Max(20),
        Constraint::Max(14),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(8),
        Constraint::Length(6),
        Constraint::Fill(1),
    ];
    Table::new(cells, widths).header(bold(header))
}

/// One host as text, for the frame and for a plain table alike.
pub(crate) fn host_cells(row: &Row) -> [String; 8] {
    let host = &row.host;
    let own = if host.is_self { " (this)" } else { "" };
    let [work, waiting, loaded] = match &host.live {
        Some(live) => [
            format!("{}/{}", live.n_active, live.n_slots),
            live.n_queued.to_string(),
            clean(&live.loaded.join(" ")),
        ],
        None => ["-".to_owned(), "-".to_owned(), String::new()],
    };
    [
        format!("{}{own}", host.name),
        host.user.to_string(),
        if host.is_online { "up" } else { "away" }.to_owned(),
        work,
        waiting,
        pace(row.tokens_per_second),
        host.n_models.to_string(),
        loaded,
    ]
}

fn gpus<'a>(rows: &[&'a Row]) -> Vec<(&'a Row, &'a Gpu)> {
    let with_gpus = rows
        .iter()
        .filter_map(|row| Some((*row, row.host.live.as_ref()?)));
    with_gpus
        .flat_map(|(row, live)| live.gpus.iter().map(move |gpu| (row, gpu)))
        .collect()
}

fn gpu_table<'a>(gpus: &[(&'a Row, &'a Gpu)]) -> Table<'a> {
    let header = ["GPU", "ON", "BUSY", "MEMORY", "HEAT", "POWER", "DRIVER"];
    let cells = gpus
        .iter()
        .map(|(row, gpu)| Cells::new(gpu_cells(row, gpu).map(Cell::from)));
    let widths = [
        Constraint::Max(28),
        Constraint::Max(20),
        Constraint::Length(5),
        Constraint::Length(22),
        Constraint::Length(5),
        Constraint::Length(6),
        Constraint::Fill(1),
    ];
    Table::new(cells, widths).header(bold(header))
}

/// One GPU as text.
pub(crate) fn gpu_cells(row: &Row, gpu: &Gpu) -> [String; 7] {
    let dash = || "-".to_owned();
    let mig = if gpu.is_mig == Some(true) {
        " (MIG)"
    } else {
        ""
    };
    let memory = match (gpu.memory_used_bytes, gpu.memory_total_bytes) {
        (Some(used), Some(total)) => format!("{} of {}", bytes(used), bytes(total)),
        (None, Some(total)) => bytes(total),
        (_, None) => dash(),
    };
    [
        clean(&format!("{}{mig}", gpu.name)),
        row.host.name.to_string(),
        gpu.utilization_percent
            .map_or_else(dash, |busy| format!("{busy} %")),
        memory,
        gpu.temperature_celsius
            .map_or_else(dash, |heat| format!("{heat} C")),
        gpu.power_milliwatts
            .map_or_else(dash, |power| format!("{} W", power / 1_000)),
        gpu.driver.as_deref().map_or_else(dash, clean),
    ]
}

fn pace(tokens_per_second: Option<f64>) -> String {
    match tokens_per_second {
        None => "-".to_owned(),
        Some(pace) if pace < 10.0 => format!("{pace:.1}"),
        Some(pace) => format!("{pace:.0}"),
    }
}

fn bold<const N: usize>(header: [&'static str; N]) -> Cells<'static> {
    Cells::new(header).style(Style::new().add_modifier(Modifier::BOLD))
}

fn dim() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}
