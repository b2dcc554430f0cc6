//! How the configuration is read again while the daemon runs. Reading it is the caller's function, on a thread
//! of its own, since files may lie on a file system that hangs.
//!
//! What the keys mean is known to `config`.

use crate::config::{Limits, Settings};
use crate::logging;

use super::{Broker, Event, memory};

/// Reads all settings anew; all faults in one text, a line each.
pub type Reload = Box<dyn Fn() -> Result<Settings, String> + Send + Sync>;

/// How far a reload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reloading {
    /// None is under way.
    Idle,
    /// A thread reads.
    Reading,
    /// A thread reads, and was asked to again: what it reads may be too old.
    ReadingAndAsked,
}

impl Broker {
    /// Begins a reload: the only place where one begins.
    pub(super) fn begin_reload(&mut self) {
        if self.reloading != Reloading::Idle {
            self.reloading = Reloading::ReadingAndAsked;
            return;
        }
        self.service.reloading();
        let (reload, events) = (std::sync::Arc::clone(&self.reload), self.events.clone());
        let read = move || {
            let read = reload().map(Box::new);
            let _ = events.blocking_send(Event::Reloaded(read));
        };
        match std::thread::Builder::new().name("reeld-reload".into()).spawn(read) {
            Ok(_) => self.reloading = Reloading::Reading,
            Err(error) => {
                tracing::error!(%error, "the configuration cannot be read again");
                self.service.ready();
            }
        }
    }

    /// Ends a reload: the only place where one ends. A faulty configuration changes nothing.
    pub(super) fn reloaded(&mut self, read: Result<Box<Settings>, String>) {
        let asked_again = self.reloading == Reloading::ReadingAndAsked;
        self.reloading = Reloading::Idle;
        match read.and_then(|settings| logging::check(&settings.log).map(|()| settings)) {
            Ok(settings) => self.apply(*settings),
            Err(faults) => {
                for fault in faults.lines().filter(|fault| !fault.trim().is_empty()) {
                    tracing::error!(fault, "configuration not reloaded: nothing was changed");
                }
            }
        }
        self.service.ready();
        if asked_again {
            self.begin_reload();
        }
    }

    fn apply(&mut self, settings: Settings) {
        let Changes { mut applied, need_restart } = changes(&self.settings, &settings);
        if applied.contains(&"log")
            && let Err(fault) = logging::change_filter(&settings.log)
        {
            tracing::error!(fault, "the log goes on as before");
            applied.retain(|&key| key != "log");
        }
        self.settings.log = settings.log;
        self.settings.drain_seconds = settings.drain_seconds;
        self.apply_limits(settings.limits);
        tracing::info!(
            changed = applied.join(","),
            need_restart = need_restart.join(","),
            "configuration reloaded"
        );
    }

    /// New limits hold for what is granted from now on, and whoever waits is looked at again.
    pub(super) fn apply_limits(&mut self, limits: Limits) {
        self.settings.limits = limits;
        let limits = &self.settings.limits;
        self.quotas.change_limits(memory::quota_limits(&self.settings, self.node_bytes));
        self.engines.change_limits(limits, &self.settings.log);
        for gate in self.gates.values_mut() {
            gate.resize(limits.user_requests_max);
        }
        for client in self.clients.values_mut() {
            client.gate.resize(limits.client_requests_max);
            client.memory.change_quota(limits.client_memory_mib << 20);
        }
        self.has_memory_moved = true;
        let waiting = self.clients.iter().filter(|(_, client)| !client.waiting.is_empty());
        for client in waiting.map(|(&key, _)| key).collect::<Vec<_>>() {
            self.admit_waiting(client);
        }
    }
}

/// Keys whose values differ.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    /// These apply from now on.
    applied: Vec<&'static str>,
    /// These only when the daemon is started again.
    need_restart: Vec<&'static str>,
}

/// Names each field, so that a new one cannot be forgotten.
fn changes(old: &Settings, new: &Settings) -> Changes {
    let Settings {
        socket,
        socket_mode,
        log,
        drain_seconds,
        cache_dir,
        index_cache_mib,
        is_private,
        ready_fd,
        limits,
    } = old;
    let mut reloadable =
        vec![("log", *log == new.log), ("drain_seconds", *drain_seconds == new.drain_seconds)];
    reloadable.extend(unchanged_limits(limits, &new.limits));
    let fixed = [
        ("socket", *socket == new.socket),
        ("socket_mode", *socket_mode == new.socket_mode),
        ("cache_dir", *cache_dir == new.cache_dir),
        ("index_cache_mib", *index_cache_mib == new.index_cache_mib),
        ("private", *is_private == new.is_private),
        ("ready_fd", *ready_fd == new.ready_fd),
    ];
    let changed = |keys: &[(&'static str, bool)]| {
        keys.iter().filter(|(_, is_same)| !is_same).map(|(key, _)| *key).collect()
    };
    Changes { applied: changed(&reloadable), need_restart: changed(&fixed) }
}

/// Each limit's key, and whether it is what it was.
fn unchanged_limits(old: &Limits, new: &Limits) -> [(&'static str, bool); 13] {
    let Limits {
        engine_count_max,
        engine_cache_mib,
        engine_decoders_mib,
        engine_memory_mib,
        client_memory_mib,
        user_memory_mib,
        memory_mib,
        client_requests_max,
        user_requests_max,
        client_sources_max,
        user_sources_max,
        client_count_max,
        user_client_count_max,
    } = old;
    [
        ("engine_count_max", *engine_count_max == new.engine_count_max),
        ("engine_cache_mib", *engine_cache_mib == new.engine_cache_mib),
        ("engine_decoders_mib", *engine_decoders_mib == new.engine_decoders_mib),
        ("engine_memory_mib", *engine_memory_mib == new.engine_memory_mib),
        ("client_memory_mib", *client_memory_mib == new.client_memory_mib),
        ("user_memory_mib", *user_memory_mib == new.user_memory_mib),
        ("memory_mib", *memory_mib == new.memory_mib),
        ("client_requests_max", *client_requests_max == new.client_requests_max),
        ("user_requests_max", *user_requests_max == new.user_requests_max),
        ("client_sources_max", *client_sources_max == new.client_sources_max),
        ("user_sources_max", *user_sources_max == new.user_sources_max),
        ("client_count_max", *client_count_max == new.client_count_max),
        ("user_client_count_max", *user_client_count_max == new.user_client_count_max),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            socket: "/run/a.sock".into(),
            socket_mode: 0o660,
            log: "info".into(),
            drain_seconds: 10,
            cache_dir: None,
            index_cache_mib: 0,
            is_private: false,
            ready_fd: None,
            limits: Limits {
                engine_count_max: Some(2),
                engine_cache_mib: 64,
                engine_decoders_mib: 32,
                engine_memory_mib: 1024,
                client_memory_mib: 128,
                user_memory_mib: None,
                memory_mib: None,
                client_requests_max: 64,
                user_requests_max: 256,
                client_sources_max: 100,
                user_sources_max: 200,
                client_count_max: 10,
                user_client_count_max: 10,
            },
        }
    }

    fn broker() -> Broker {
        let (events, _) = tokio::sync::mpsc::channel(1);
        Broker::new(settings(), Box::new(|| Err(String::new())), Vec::new(), events).unwrap()
    }

    #[test]
    fn changed_keys_are_told_apart_by_what_they_need() {
        let mut new = settings();
        assert_eq!(changes(&settings(), &new), Changes::default());
        new.limits.client_memory_mib = 256;
        new.drain_seconds = 3;
        new.socket_mode = 0o600;
        let changes = changes(&settings(), &new);
        assert_eq!(changes.applied, ["drain_seconds", "client_memory_mib"]);
        assert_eq!(changes.need_restart, ["socket_mode"]);
    }

    #[test]
    fn reload_replaces_limits_and_leaves_what_needs_a_restart() {
        let mut broker = broker();
        let mut new = settings();
        new.limits.client_memory_mib = 256;
        new.drain_seconds = 3;
        new.socket = "/run/b.sock".into();
        broker.reloaded(Ok(Box::new(new.clone())));
        assert_eq!((&broker.settings.limits, broker.settings.drain_seconds), (&new.limits, 3));
        assert_eq!(broker.settings.socket, settings().socket);
    }

    #[test]
    fn faulty_configuration_changes_nothing() {
        let mut broker = broker();
        broker.reloaded(Err("one fault\nanother fault".into()));
        let mut new = settings();
        new.log = "reeld=loud".into();
        new.drain_seconds = 3;
        broker.reloaded(Ok(Box::new(new)));
        assert_eq!(broker.settings, settings());
    }
}
