//! `reelctl status`: the daemon's report, as text or JSON.
//!
//! What is counted, and how, is documented with `reeld_client::status`.

use reeld_client::Client;
use reeld_client::status::{ClientStatus, EngineStatus, Status, Totals};
use serde_json::{Value, json};

use crate::Failure;
use crate::table::{duration, row, size, table};

pub(crate) fn run(client: &Client, is_json: bool) -> Result<String, Failure> {
    let status = client.status()?;
    Ok(if is_json { format!("{:#}", to_json(&status)) } else { to_text(&status) })
}

fn to_text(status: &Status) -> String {
    let mut text = format!(
        "reeld {}, process {}, up {}\n{}\n\n",
        status.version,
        status.pid,
        duration(status.uptime_seconds),
        status.ffmpeg_versions.join(", ")
    );
    text += &format!(
        "{} clients, {} files, {} requests under way, {} runs waiting for an engine\n",
        status.client_count, status.source_count, status.request_count, status.queued_run_count
    );
    text += &format!(
        "{} of shared memory; {} leased in {} leases; {} slots being filled, {} in quarantine\n",
        size(status.arena_bytes),
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
    text += &format!("\nCLIENTS\n{}", clients(&status.clients));
    text += &format!("\nENGINES\n{}", engines(&status.engines));
    text += &format!("\nSINCE THE START\n{}", totals(&status.totals));
    text
}

fn clients(clients: &[ClientStatus]) -> String {
    let mut rows = vec![row([&"pid", &"uid", &"files", &"requests", &"leases", &"leased", &"shared memory"])];
    rows.extend(clients.iter().map(|client| {
        row([
            &client.pid,
            &client.uid,
            &client.source_count,
            &client.request_count,
            &client.lease_count,
            &size(client.leased_bytes),
            &size(client.arena_bytes),
        ])
    }));
    table(&rows)
}

fn engines(engines: &[EngineStatus]) -> String {
    let mut rows = vec![row([&"pid", &"uid", &"state", &"decoders", &"cache"])];
    rows.extend(engines.iter().map(|engine| {
        let state = if engine.is_busy { "busy" } else { "idle" };
        row([&engine.pid, &engine.uid, &state, &engine.session_count, &size(engine.cache_bytes)])
    }));
    table(&rows)
}

fn totals(totals: &Totals) -> String {
    table(&[
        row([&"clients", &totals.clients]),
        row([&"requests", &totals.requests]),
        row([&"requests that failed", &totals.requests_failed]),
        row([&"frames delivered", &totals.frames_delivered]),
        row([&"pictures decoded", &totals.pictures_decoded]),
        row([&"frames from a cache", &totals.cache_hits]),
        row([&"files scanned", &totals.scans]),
        row([&"runs", &totals.runs]),
        row([&"pictures that joined another's run", &totals.joined]),
        row([&"engines that crashed", &totals.engine_crashes]),
        row([&"requests tried again", &totals.retries]),
        row([&"stray releases", &totals.stray_releases]),
    ])
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
        "totals": {
            "clients": status.totals.clients,
            "requests": status.totals.requests,
            "requests_failed": status.totals.requests_failed,
            "frames_delivered": status.totals.frames_delivered,
            "pictures_decoded": status.totals.pictures_decoded,
            "cache_hits": status.totals.cache_hits,
            "scans": status.totals.scans,
            "runs": status.totals.runs,
            "joined": status.totals.joined,
            "engine_crashes": status.totals.engine_crashes,
            "retries": status.totals.retries,
            "stray_releases": status.totals.stray_releases,
        },
        "clients": status.clients.iter().map(client_to_json).collect::<Vec<_>>(),
        "engines": status.engines.iter().map(engine_to_json).collect::<Vec<_>>(),
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
    })
}

fn engine_to_json(engine: &EngineStatus) -> Value {
    json!({
        "pid": engine.pid,
        "uid": engine.uid,
        "is_busy": engine.is_busy,
        "session_count": engine.session_count,
        "cache_bytes": engine.cache_bytes,
    })
}
