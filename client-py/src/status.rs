//! What the daemon and this side report of themselves, as dicts: the names of the fields are the keys.
//!
//! Nothing is counted here.

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use reeld_client::ClientStatistics;
use reeld_client::status::{ClientStatus, EngineStatus, ErrorCount, Status, Totals, UserStatus};

/// The daemon's report, with the keys of `reelctl status --json`.
pub(crate) fn report<'py>(py: Python<'py>, status: &Status) -> PyResult<Bound<'py, PyDict>> {
    let report = PyDict::new(py);
    report.set_item("version", &status.version)?;
    report.set_item("ffmpeg_versions", &status.ffmpeg_versions)?;
    report.set_item("pid", status.pid)?;
    report.set_item("uptime_seconds", status.uptime_seconds)?;
    report.set_item("client_count", status.client_count)?;
    report.set_item("lease_count", status.lease_count)?;
    report.set_item("leased_bytes", status.leased_bytes)?;
    report.set_item("filling_count", status.filling_count)?;
    report.set_item("quarantined_count", status.quarantined_count)?;
    report.set_item("arena_bytes", status.arena_bytes)?;
    report.set_item("source_count", status.source_count)?;
    report.set_item("queued_run_count", status.queued_run_count)?;
    report.set_item("request_count", status.request_count)?;
    report.set_item("stuck_helper_count", status.stuck_helper_count)?;
    report.set_item("slow_turn_count", status.slow_turn_count)?;
    report.set_item("longest_turn_micros", status.longest_turn_micros)?;
    report.set_item("totals", totals(py, &status.totals)?)?;
    report.set_item("clients", list(py, &status.clients, client)?)?;
    report.set_item("engines", list(py, &status.engines, engine)?)?;
    report.set_item("users", list(py, &status.users, user)?)?;
    report.set_item("memory_bytes_max", status.memory_bytes_max)?;
    report.set_item("detached_bytes", status.detached_bytes)?;
    report.set_item("is_draining", status.is_draining)?;
    report.set_item("queued_pixels", status.queued_pixels)?;
    report.set_item("cache_bytes", status.cache_bytes)?;
    report.set_item("errors", errors(py, &status.errors)?)?;
    report.set_item("log_lines_dropped", status.log_lines_dropped)?;
    report.set_item("tickets_outstanding", status.tickets_outstanding)?;
    report.set_item("hints_waiting", status.hints_waiting)?;
    Ok(report)
}

/// This side's numbers.
pub(crate) fn statistics<'py>(
    py: Python<'py>,
    statistics: &ClientStatistics,
) -> PyResult<Bound<'py, PyDict>> {
    dict(
        py,
        [
            ("quota_bytes", statistics.quota_bytes),
            ("leases_held", statistics.leases_held),
            ("leased_bytes", statistics.leased_bytes),
            ("leases_deferred", statistics.leases_deferred),
            ("deferred_bytes", statistics.deferred_bytes),
            ("results_copied_out", statistics.results_copied_out),
            ("frames_copied_out", statistics.frames_copied_out),
            ("bytes_copied_out", statistics.bytes_copied_out),
        ],
    )
}

fn totals<'py>(py: Python<'py>, totals: &Totals) -> PyResult<Bound<'py, PyDict>> {
    dict(
        py,
        [
            ("clients", totals.clients),
            ("requests", totals.requests),
            ("requests_failed", totals.requests_failed),
            ("frames_delivered", totals.frames_delivered),
            ("pictures_decoded", totals.pictures_decoded),
            ("samples_skipped", totals.samples_skipped),
            ("cache_hits", totals.cache_hits),
            ("scans", totals.scans),
            ("runs", totals.runs),
            ("joined", totals.joined),
            ("engine_crashes", totals.engine_crashes),
            ("retries", totals.retries),
            ("stray_releases", totals.stray_releases),
            ("engine_restarts", totals.engine_restarts),
            ("results_copied_out", totals.results_copied_out),
            ("bytes_copied_out", totals.bytes_copied_out),
            ("tickets_issued", totals.tickets_issued),
            ("tickets_redeemed", totals.tickets_redeemed),
            ("tickets_expired", totals.tickets_expired),
            ("hints_accepted", totals.hints_accepted),
            ("hints_dropped", totals.hints_dropped),
            ("pictures_prefetched", totals.pictures_prefetched),
            ("prefetch_hits", totals.prefetch_hits),
            ("conversion_micros", totals.conversion_micros),
            ("page_faults", totals.page_faults),
        ],
    )
}

/// By the names of the codes.
fn errors<'py>(py: Python<'py>, errors: &[ErrorCount]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for error in errors {
        dict.set_item(&error.code, error.count)?;
    }
    Ok(dict)
}

fn client<'py>(py: Python<'py>, client: &ClientStatus) -> PyResult<Bound<'py, PyDict>> {
    let report = dict(
        py,
        [
            ("connection", client.connection),
            ("pid", client.pid.into()),
            ("uid", client.uid.into()),
            ("source_count", client.source_count),
            ("lease_count", client.lease_count),
            ("leased_bytes", client.leased_bytes),
            ("arena_bytes", client.arena_bytes),
            ("request_count", client.request_count),
            ("connected_seconds", client.connected_seconds),
            ("requests_total", client.requests_total),
            ("error_count", client.error_count),
            ("results_copied_out", client.results_copied_out),
            ("bytes_copied_out", client.bytes_copied_out),
            ("tickets_issued", client.tickets_issued),
            ("tickets_redeemed", client.tickets_redeemed),
        ],
    )?;
    report.set_item("name", &client.name)?;
    Ok(report)
}

fn engine<'py>(py: Python<'py>, engine: &EngineStatus) -> PyResult<Bound<'py, PyDict>> {
    let report = dict(
        py,
        [
            ("pid", engine.pid.into()),
            ("uid", engine.uid.into()),
            ("session_count", engine.session_count),
            ("cache_bytes", engine.cache_bytes),
            ("activity_millis", engine.activity_millis),
            ("jobs_done", engine.jobs_done),
            ("uptime_seconds", engine.uptime_seconds),
        ],
    )?;
    report.set_item("is_busy", engine.is_busy)?;
    report.set_item("activity", engine.activity.name())?;
    report.set_item("label", engine.label.as_deref())?;
    Ok(report)
}

fn user<'py>(py: Python<'py>, user: &UserStatus) -> PyResult<Bound<'py, PyDict>> {
    dict(
        py,
        [
            ("uid", user.uid.into()),
            ("client_count", user.client_count),
            ("request_count", user.request_count),
            ("source_count", user.source_count),
            ("arena_bytes", user.arena_bytes),
            ("detached_bytes", user.detached_bytes),
            ("memory_bytes_max", user.memory_bytes_max),
        ],
    )
}

fn dict<'py, const N: usize>(py: Python<'py>, fields: [(&str, u64); N]) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in fields {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}

fn list<'py, T>(
    py: Python<'py>,
    items: &[T],
    shown: impl Fn(Python<'py>, &T) -> PyResult<Bound<'py, PyDict>>,
) -> PyResult<Bound<'py, PyList>> {
    let list = PyList::empty(py);
    for item in items {
        list.append(shown(py, item)?)?;
    }
    Ok(list)
}
