//! `reelctl status`: the daemon's report, as text or JSON.
//!
//! What is counted, and how, is documented with `reeld_client::status`.

use reeld_client::Client;
use reeld_client::status::{ClientStatus, EngineStatus, ErrorCount, Status, Totals, UserStatus};
use serde_json::{Map, Value, json};

use crate::Failure;
use crate::table::{duration, row, short_duration, size, table, table_with_text, tail};

/// Characters of a client's name that are shown: the whole is in `--json`.
const NAME_CHARS_MAX: usize = 12;

/// Characters of a file's label that are shown.
const LABEL_CHARS_MAX: usize = 28;

pub(crate) fn run(client: &Client, is_json: bool) -> Result<String, Failure> {
    let status = client.status()?;
    Ok(if is_json { format!("{:#}", to_json(&status)) } else { to_text(&status) })
}

fn to_text(status: &Status) -> String {
    let mut text = format!(
        "reeld {}, process {}, up {}{}\n{}\n\n",
        status.version,
        status.pid,
        duration(status.uptime_seconds),
        if status.is_draining { ", stopping" } else { "" },
        libraries(&status.ffmpeg_versions)
    );
    text += &format!(
        "{} clients, {} files, {} requests under way\n{} runs ({} megapixels) wait for an engine\n",
        status.client_count,
        status.source_count,
        status.request_count,
        status.queued_run_count,
        status.queued_pixels / 1_000_000
    );
    text += &format!(
        "{} of shared memory, {} of pictures kept by engines\n",
        size(status.arena_bytes),
        size(status.cache_bytes)
    );
    text += &format!(
        "{} leased in {} leases; {} slots being filled, {} in quarantine\n",
        size(status.leased_bytes),
        status.lease_count,
        status.filling_count,
        status.quarantined_count
    );
    text += &format!(
        "{} calls on files hang; longest turn of the loop {:.1} ms, {} turns of 10 ms and more\n",
        status.stuck_helper_count,
        status.longest_turn_micros as f64 / 1000.0,
        status.slow_turn_count
    );
    text += &format!(
        "{} of shared memory is the limit; {} are those of clients that are gone, for engines or tickets\n",
        size(status.memory_bytes_max),
        size(status.detached_bytes)
    );
    text += &format!("{} tickets wait to be redeemed\n", status.tickets_outstanding);
    text += &format!("\nUSERS\n{}", users(&status.users));
    if status.log_lines_dropped > 0 {
        text += &format!("{} lines of the log were dropped: nobody read it\n", status.log_lines_dropped);
    }
    text += &format!("\nCLIENTS\n{}", clients(&status.clients));
    text += &format!("\nENGINES\n{}", engines(&status.engines));
    text += &format!("\nSINCE THE START\n{}", totals(&status.totals));
    text += &format!("\nERRORS SINCE THE START\n{}", errors(&status.errors));
    text
}

/// All libraries in as many lines as it takes.
fn libraries(versions: &[String]) -> String {
    let lines: Vec<String> = versions.chunks(4).map(|versions| versions.join(", ")).collect();
    lines.join(",\n")
}

fn clients(clients: &[ClientStatus]) -> String {
    let mut rows = vec![row([
        &"name",
        &"pid",
        &"uid",
        &"up",
        &"files",
        &"open",
        &"requests",
        &"errors",
        &"leases",
        &"leased",
        &"memory",
    ])];
    rows.extend(clients.iter().map(|client| {
        row([
            &tail(&client.name, NAME_CHARS_MAX),
            &client.pid,
            &client.uid,
            &short_duration(client.connected_seconds),
            &client.source_count,
            &client.request_count,
            &client.requests_total,
            &client.error_count,
            &client.lease_count,
            &size(client.leased_bytes),
            &size(client.arena_bytes),
        ])
    }));
    table(&rows)
}

fn users(users: &[UserStatus]) -> String {
    let mut rows = vec![row([&"uid", &"clients", &"files", &"requests", &"shared memory", &"limit"])];
    rows.extend(users.iter().map(|user| {
        row([
            &user.uid,
            &user.client_count,
            &user.source_count,
            &user.request_count,
            &size(user.arena_bytes + user.detached_bytes),
            &size(user.memory_bytes_max),
        ])
    }));
    table(&rows)
}

fn engines(engines: &[EngineStatus]) -> String {
    let mut rows =
        vec![row([&"pid", &"uid", &"up", &"jobs", &"decoders", &"cache", &"for", &"doing", &"file"])];
    rows.extend(engines.iter().map(|engine| {
        row([
            &engine.pid,
            &engine.uid,
            &short_duration(engine.uptime_seconds),
            &engine.jobs_done,
            &engine.session_count,
            &size(engine.cache_bytes),
            &lasting(engine.activity_millis),
            &engine.activity.name(),
            &tail(engine.label.as_deref().unwrap_or_default(), LABEL_CHARS_MAX),
        ])
    }));
    table_with_text(&rows, &[0, 7, 8])
}

fn lasting(millis: u64) -> String {
    if millis < 1000 { format!("{millis}ms") } else { short_duration(millis / 1000) }
}

fn errors(errors: &[ErrorCount]) -> String {
    if errors.is_empty() {
        return "none\n".to_owned();
    }
    table(&errors.iter().map(|error| row([&error.code, &error.count])).collect::<Vec<_>>())
}

fn totals(totals: &Totals) -> String {
    table(&[
        row([&"clients", &totals.clients]),
        row([&"requests for frames", &totals.requests]),
        row([&"requests for frames that failed", &totals.requests_failed]),
        row([&"frames delivered", &totals.frames_delivered]),
        row([&"pictures decoded", &totals.pictures_decoded]),
        row([&"samples skipped", &totals.samples_skipped]),
        row([&"pictures decoded per frame delivered", &amplification(totals)]),
        row([&"frames from a cache", &totals.cache_hits]),
        row([&"conversion to frames", &lasting(totals.conversion_micros / 1000)]),
        row([&"page faults of engines", &totals.page_faults]),
        row([&"files scanned", &totals.scans]),
        row([&"runs", &totals.runs]),
        row([&"pictures that joined another's run", &totals.joined]),
        row([&"engines that crashed", &totals.engine_crashes]),
        row([&"engines started again", &totals.engine_restarts]),
        row([&"requests tried again", &totals.retries]),
        row([&"stray releases", &totals.stray_releases]),
        row([&"tickets issued", &totals.tickets_issued]),
        row([&"tickets redeemed", &totals.tickets_redeemed]),
        row([&"tickets expired", &totals.tickets_expired]),
        row([&"frames hinted at", &totals.hints_accepted]),
        row([&"frames hinted at in vain", &totals.hints_dropped]),
        row([&"pictures decoded ahead", &totals.pictures_prefetched]),
        row([&"of these asked for", &totals.prefetch_hits]),
        row([&"results copied by clients", &totals.results_copied_out]),
        row([&"bytes of these", &totals.bytes_copied_out]),
    ])
}

/// Decode amplification.
fn amplification(totals: &Totals) -> String {
    if totals.frames_delivered == 0 {
        return "-".to_owned();
    }
    format!("{:.2}", totals.pictures_decoded as f64 / totals.frames_delivered as f64)
}

fn to_json(status: &Status) -> Value {
    json!({
        "version": status.version,
        "ffmpeg_versions": status.ffmpeg_versions,
        "pid": status.pid,
        "uptime_seconds": status.uptime_seconds,
        "client_count": status.client_count,
        "lease_count": status.lease_count,
        "leased_bytes": status.leased_bytes,
        "filling_count": status.filling_count,
        "quarantined_count": status.quarantined_count,
        "arena_bytes": status.arena_bytes,
        "source_count": status.source_count,
        "queued_run_count": status.queued_run_count,
        "request_count": status.request_count,
        "stuck_helper_count": status.stuck_helper_count,
        "slow_turn_count": status.slow_turn_count,
        "longest_turn_micros": status.longest_turn_micros,
        "totals": totals_to_json(&status.totals),
        "clients": status.clients.iter().map(client_to_json).collect::<Vec<_>>(),
        "engines": status.engines.iter().map(engine_to_json).collect::<Vec<_>>(),
        "users": status.users.iter().map(user_to_json).collect::<Vec<_>>(),
        "memory_bytes_max": status.memory_bytes_max,
        "detached_bytes": status.detached_bytes,
        "is_draining": status.is_draining,
        "queued_pixels": status.queued_pixels,
        "cache_bytes": status.cache_bytes,
        "errors": status
            .errors
            .iter()
            .map(|error| (error.code.clone(), Value::from(error.count)))
            .collect::<Map<_, _>>(),
        "log_lines_dropped": status.log_lines_dropped,
        "tickets_outstanding": status.tickets_outstanding,
        "hints_waiting": status.hints_waiting,
    })
}

fn totals_to_json(totals: &Totals) -> Value {
    json!({
        "clients": totals.clients,
        "requests": totals.requests,
        "requests_failed": totals.requests_failed,
        "frames_delivered": totals.frames_delivered,
        "pictures_decoded": totals.pictures_decoded,
        "samples_skipped": totals.samples_skipped,
        "cache_hits": totals.cache_hits,
        "scans": totals.scans,
        "runs": totals.runs,
        "joined": totals.joined,
        "engine_crashes": totals.engine_crashes,
        "retries": totals.retries,
        "stray_releases": totals.stray_releases,
        "engine_restarts": totals.engine_restarts,
        "results_copied_out": totals.results_copied_out,
        "bytes_copied_out": totals.bytes_copied_out,
        "tickets_issued": totals.tickets_issued,
        "tickets_redeemed": totals.tickets_redeemed,
        "tickets_expired": totals.tickets_expired,
        "hints_accepted": totals.hints_accepted,
        "hints_dropped": totals.hints_dropped,
        "pictures_prefetched": totals.pictures_prefetched,
        "prefetch_hits": totals.prefetch_hits,
        "conversion_micros": totals.conversion_micros,
        "page_faults": totals.page_faults,
    })
}

fn client_to_json(client: &ClientStatus) -> Value {
    json!({
        "connection": client.connection,
        "pid": client.pid,
        "uid": client.uid,
        "source_count": client.source_count,
        "lease_count": client.lease_count,
        "leased_bytes": client.leased_bytes,
        "arena_bytes": client.arena_bytes,
        "request_count": client.request_count,
        "name": client.name,
        "connected_seconds": client.connected_seconds,
        "requests_total": client.requests_total,
        "error_count": client.error_count,
        "results_copied_out": client.results_copied_out,
        "bytes_copied_out": client.bytes_copied_out,
        "tickets_issued": client.tickets_issued,
        "tickets_redeemed": client.tickets_redeemed,
    })
}

fn user_to_json(user: &UserStatus) -> Value {
    json!({
        "uid": user.uid,
        "client_count": user.client_count,
        "request_count": user.request_count,
        "source_count": user.source_count,
        "arena_bytes": user.arena_bytes,
        "detached_bytes": user.detached_bytes,
        "memory_bytes_max": user.memory_bytes_max,
    })
}

fn engine_to_json(engine: &EngineStatus) -> Value {
    json!({
        "pid": engine.pid,
        "uid": engine.uid,
        "is_busy": engine.is_busy,
        "session_count": engine.session_count,
        "cache_bytes": engine.cache_bytes,
        "activity": engine.activity.name(),
        "activity_millis": engine.activity_millis,
        "label": engine.label,
        "jobs_done": engine.jobs_done,
        "uptime_seconds": engine.uptime_seconds,
    })
}

#[cfg(test)]
mod tests {
    use reeld_client::status::Activity;

    use super::*;

    #[test]
    fn report_with_large_numbers_fits_a_terminal_of_100_columns_and_cuts_no_number() {
        let client = ClientStatus {
            connection: 123_456,
            pid: 4_194_304,
            uid: 65_534,
            source_count: 65_536,
            lease_count: 12_345,
            leased_bytes: 1000 << 20,
            arena_bytes: 1023 << 20,
            request_count: 64,
            name: "python train.py".into(),
            connected_seconds: 86_400 * 99,
            requests_total: 12_345_678,
            error_count: 12_345,
            results_copied_out: 12_345,
            bytes_copied_out: 1000 << 20,
            tickets_issued: 12_345,
            tickets_redeemed: 12_345,
        };
        let engine = EngineStatus {
            pid: 4_194_304,
            uid: 65_534,
            is_busy: true,
            session_count: 8,
            cache_bytes: 1023 << 20,
            activity: Activity::Decoding,
            activity_millis: 59_000,
            label: Some("/data/a/very/long/path/to/a/video/of/a/data/set/00001.mp4".into()),
            jobs_done: 123_456_789,
            uptime_seconds: 86_400 * 99,
        };
        let status = Status {
            version: "0.1.0".into(),
            ffmpeg_versions: vec!["libavcodec 59.37.100".into(); 6],
            pid: 4_194_304,
            uptime_seconds: 86_400 * 400,
            arena_bytes: 1023 << 30,
            leased_bytes: 1023 << 30,
            queued_run_count: 123_456,
            queued_pixels: 1 << 50,
            clients: vec![client],
            engines: vec![engine],
            errors: vec![ErrorCount { code: "index_out_of_range".into(), count: u64::MAX }],
            ..Status::default()
        };
        let text = to_text(&status);
        for line in text.lines() {
            assert!(line.chars().count() <= 100, "{} columns: {line}", line.chars().count());
        }
        for number in ["4194304", "12345678", "123456789", "1000.0 MiB", "18446744073709551615", "99d00h"] {
            assert!(text.contains(number), "{number} is not in\n{text}");
        }
        assert!(text.contains("…set/00001.mp4") || text.contains("data/set/00001.mp4"), "{text}");
    }
}
