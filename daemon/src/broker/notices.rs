//! What clients say without expecting an answer.
//!
//! What they give back is the matter of `frames` and `handing`.

use std::os::fd::OwnedFd;

use reeld_protocol::message::Notice;

use super::{Broker, clock, reply};

impl Broker {
    /// Takes note of it. Descriptors that are of use are taken out of `fds`.
    pub(super) fn client_notice(&mut self, key: u64, notice: Notice, fds: &mut Vec<OwnedFd>) {
        match notice {
            Notice::Release(leases) => self.release(key, &leases),
            Notice::CloseSource(source) => {
                let Some(client) = self.clients.get_mut(&key) else { return };
                if let Some(opened) = client.sources.remove(&source) {
                    self.quotas.close_sources(client.user, 1);
                    self.quotas.unmap_frames(client.user, opened.timeline.private_frame_count());
                    self.catalog.release(opened.catalog, clock::now());
                    self.drop_timelines([opened.timeline]);
                }
            }
            Notice::Cancel(request_id) => {
                if let Some(request) = self.requests.find(key, request_id) {
                    self.fail_request(request, reply::cancelled());
                }
            }
            Notice::Session => self.name_session(key, fds),
            Notice::Copied { results, bytes } => {
                let Some(client) = self.clients.get_mut(&key) else { return };
                // What a client says of itself may be any number.
                let add = |count: &mut u64, more: u64| *count = count.saturating_add(more);
                add(&mut client.results_copied_out, results);
                add(&mut client.bytes_copied_out, bytes);
                add(&mut self.totals.results_copied_out, results);
                add(&mut self.totals.bytes_copied_out, bytes);
            }
            Notice::Prefetch(hint) => self.prefetch(key, hint),
            // These are the daemon's to say.
            Notice::ArenaGranted { .. } | Notice::ArenaRevoked(_) => {
                self.break_off(key, "a notice that only the daemon sends");
            }
        }
    }
}
