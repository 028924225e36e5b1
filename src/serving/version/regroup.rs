//! Other instances for a version that is served, whose model stays loaded: those that stay are not
//! touched, nor are the requests, sequences and counts of the version.

use std::{mem::discriminant, sync::Arc};

use super::{
    LoadedVersion, Member, Queue, RunsOn,
    start::{Outline, Site, VersionError, VersionSpec},
};
use crate::{
    backend::PlacementDevice,
    device::Device,
    serving::{
        instance_thread::InstanceThreads,
        lanes::OpenLanes,
        sequences::{Instances, NewInstances},
    },
};

/// A version with other instances, which are ready to take the places of those that there are.
pub struct Regrouping {
    before: Arc<LoadedVersion>,
    after: Arc<LoadedVersion>,
    /// Which of the instances before stay.
    stays: Vec<bool>,
    others: Others,
}

/// The instances that come, on threads that wait for work.
enum Others {
    /// On reactors their number means nothing.
    Nobody,
    Threads(InstanceThreads),
    Lanes(Option<OpenLanes>),
    /// These are numbered from the first number on.
    Sequences(u32, NewInstances),
}

impl LoadedVersion {
    /// Makes what the instances of `spec` take that are not there already. `None` when they would not run
    /// as those before do, so that the version has to be loaded anew. Blocks, so not for reactors.
    ///
    /// # Errors
    /// When an instance or its thread cannot be had; nothing has changed then.
    pub(in crate::serving) fn regroup(
        self: &Arc<Self>,
        spec: VersionSpec,
        site: &Site<'_>,
    ) -> Result<Option<Regrouping>, VersionError> {
        let wanted = spec.members();
        if footing(&self.members, site) != footing(&wanted, site) {
            return Ok(None);
        }
        let (stays, mut come) = matched(&self.members, wanted);
        let first = self.next_member;
        let mut next_member = first;
        let mut instances = Vec::new();
        for member in &mut come {
            member.number = next_member;
            next_member += 1;
            if self.runs_on == RunsOn::Threads {
                if let Some(fleet) = site.fleet {
                    fleet.check_room(&self.name, member.placement.device)?;
                }
                let made = spec.instance(member, member.seat(site)?, &self.ragged, site)?;
                member.device = made.instance.device().cloned();
                instances.push(made);
            }
        }
        let others = match (self.runs_on, &spec.sequences) {
            (RunsOn::Threads, Some(setup)) => {
                let instances = Instances::start(first, instances, setup, &self.home)?;
                Others::Sequences(first, NewInstances::OnThreads(instances))
            }
            (RunsOn::Threads, None) => {
                Others::Threads(InstanceThreads::start(instances, &self.home)?)
            }
            (RunsOn::Lanes, sequences) => {
                let Some(lanes) = self.further_lanes(&spec, &mut come, site)? else {
                    return Ok(None);
                };
                match sequences {
                    Some(_) => Others::Sequences(first, NewInstances::InLanes(lanes)),
                    None => Others::Lanes(lanes.into_iter().next()),
                }
            }
            (RunsOn::Reactors, _) => Others::Nobody,
        };
        let staying = self.members.iter().zip(&stays).filter(|(_, stays)| **stays);
        let members = staying.map(|(member, _)| member.clone()).chain(come).collect();
        let config = spec.outline.config;
        let outline = Outline { config, ..self.outline.clone() };
        let after = Arc::new(Self { outline, members, next_member, ..(**self).clone() });
        Ok(Some(Regrouping { before: self.clone(), after, stays, others }))
    }

    /// The lanes of the instances that come; `None` when they cannot be beside those that there are.
    fn further_lanes(
        &self,
        spec: &VersionSpec,
        come: &mut [Member],
        site: &Site<'_>,
    ) -> Result<Option<Vec<OpenLanes>>, VersionError> {
        if come.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let Some(lanes) = spec.lanes(come, false, &self.ragged, site)? else { return Ok(None) };
        let devices = || lanes.iter().flat_map(OpenLanes::devices);
        // Requests that wait may have tensors there.
        let is_there = |device: &Arc<dyn Device>| {
            self.resident_on.is_none_or(|number| number == device.properties().index)
        };
        if !devices().all(is_there) {
            return Ok(None);
        }
        for (member, device) in come.iter_mut().zip(devices()) {
            member.device = Some(device.clone());
        }
        Ok(Some(lanes))
    }
}

impl Regrouping {
    /// Has the instances take their places, and returns the version that has them. Those that lose theirs
    /// end with what they have.
    ///
    /// # Errors
    /// When the reactor that feeds them has ended.
    pub fn commit(self) -> Result<Arc<LoadedVersion>, VersionError> {
        let Self { before, after, stays, others } = self;
        let (kept, come) = (stays.iter().filter(|stays| **stays).count(), after.members.len());
        log::info!(
            "model '{}' version {}: of {} instances {kept} stay, {} are new",
            after.name,
            after.version,
            stays.len(),
            come - kept,
        );
        let numbers: Vec<u32> = before.members.iter().map(|member| member.number).collect();
        if !matches!(others, Others::Nobody) {
            after.on(&after.home, move |version| match (version.queues.get(), others) {
                (Some(Queue::Batches(shard)), Others::Threads(others)) => {
                    shard.exchange_instances(&stays, others);
                }
                (Some(Queue::Batches(shard)), Others::Lanes(others)) => {
                    shard.exchange_lanes(&stays, others);
                }
                (Some(Queue::Sequences(shard)), Others::Sequences(first, others)) => {
                    shard.exchange_instances(&numbers, &stays, others.at_home(first));
                }
                _ => log::error!("'{}' has no queue for its instances", version.name),
            })?;
        }
        Ok(after)
    }
}

/// What decides, beside the model, how instances run: whether they take turns, whether they are kept
/// off the reactors, and the kinds of their devices.
fn footing(members: &[Member], site: &Site<'_>) -> (bool, bool, [bool; 3]) {
    use PlacementDevice::{Cpu, Gpu, Model};
    let takes_turns =
        |member: &Member| site.limiter.is_some() && !member.rate_limit.resources.is_empty();
    let on = [Cpu, Gpu(0), Model].map(|kind| {
        members.iter().any(|it| discriminant(&it.placement.device) == discriminant(&kind))
    });
    let is_placed = members.iter().any(|member| member.is_placed(site));
    (members.iter().any(takes_turns), is_placed, on)
}

/// Which of `members` are among `wanted` too, and those wanted that are not among them. As in Triton the
/// name does not matter, but those of the same name are matched first.
fn matched(members: &[Member], mut wanted: Vec<Member>) -> (Vec<bool>, Vec<Member>) {
    let is_alike = |a: &Member, b: &Member| {
        a.placement.device == b.placement.device
            && a.placement.host_policy == b.placement.host_policy
            && a.rate_limit == b.rate_limit
    };
    let mut stays = vec![false; members.len()];
    for by_name in [true, false] {
        for (member, stays) in members.iter().zip(&mut stays).filter(|(_, stays)| !**stays) {
            let found = wanted.iter().position(|other| {
                is_alike(member, other)
                    && (!by_name || member.placement.name == other.placement.name)
            });
            if let Some(found) = found {
                wanted.remove(found);
                *stays = true;
            }
        }
    }
    (stays, wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{backend::Placement, repository::RateLimit};

    /// Instances by their names: what is behind a colon is the host policy.
    fn members(names: &[&str]) -> Vec<Member> {
        let member = |(number, name): (u32, &&str)| {
            let (name, host_policy) = name.split_once(':').unwrap_or((name, "cpu"));
            let (name, host_policy) = (name.to_owned(), host_policy.to_owned());
            let placement = Placement { name, device: PlacementDevice::Cpu, host_policy };
            Member { number, placement, rate_limit: RateLimit::default(), device: None }
        };
        (0..).zip(names).map(member).collect()
    }

    #[test]
    fn instances_stay_whose_settings_did() {
        for (before, wanted, stays, come) in [
            (vec!["m_0"], vec!["m_0", "m_1"], vec![true], vec!["m_1"]),
            (vec!["m_0", "m_1"], vec!["m_0"], vec![true, false], vec![]),
            // A group in another place: its name counts before its place does.
            (vec!["a_0", "b_0"], vec!["b_0"], vec![false, true], vec![]),
            (vec!["a_0", "a_1"], vec!["b_0", "b_1", "b_2"], vec![true, true], vec!["b_2"]),
            (vec!["a_0", "a_1"], vec!["b_0", "a_1"], vec![true, true], vec![]),
            (vec!["a_0", "a_1"], vec!["a_0", "a_1:far"], vec![true, false], vec!["a_1"]),
            (vec!["a_0:near"], vec!["a_0:far"], vec![false], vec!["a_0"]),
        ] {
            let (staying, coming) = matched(&members(&before), members(&wanted));
            let coming: Vec<_> = coming.iter().map(|member| &*member.placement.name).collect();
            assert_eq!((staying, coming), (stays, come), "{before:?} to {wanted:?}");
        }
    }

    #[test]
    fn an_instance_that_takes_turns_otherwise_is_another() {
        let before = members(&["m_0"]);
        let mut wanted = members(&["m_0"]);
        wanted[0].rate_limit.priority = 3;
        let (stays, come) = matched(&before, wanted);
        assert_eq!((stays, come.len()), (vec![false], 1));
    }
}
