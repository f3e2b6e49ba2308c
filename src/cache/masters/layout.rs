//! How the slots of a Cluster lie, and which of them a sweep has to look at again because they moved under it.
//!
//! A key is on one master at a time, but a sweep looks at one master after the other: a key that goes from one that it has yet to look at to
//! one that it has looked at is seen on neither. A slot is done when one master had it, and gave nothing of it away, all the time that it was
//! looked at; where it goes then does not matter, its keys are stale. So each round owes only what moved under it, and as a round over a few
//! slots is short, soon nothing does, however long others move.

use std::collections::{BTreeMap, BTreeSet};

use super::super::slots::SLOTS;

/// What one master says that it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Its connection.
    pub node: usize,
    /// Of two that say that they have a slot the Cluster believes the one with the greater number.
    epoch: u64,
    slots: BTreeSet<u16>,
    /// Slots on their way: `->-<id>` to another master, `-<-<id>` from one.
    ways: BTreeMap<u16, String>,
}

/// Which slots the masters have, and which are on their way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// By the master's id.
    shares: BTreeMap<String, Share>,
    /// Everyone that somebody takes for a living master, with slots or without.
    masters: BTreeSet<String>,
    /// Where to find those that have slots or are given some.
    places: BTreeMap<String, (String, u16)>,
    /// First and last slots of each, as others say. One that is handed over between two answers is nobody's by their own words.
    hearsay: BTreeMap<String, BTreeSet<(u16, u16)>>,
}

/// What one master has to do with a slot: it has it, it gives it away or gets it, or another wants to give it to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Claim<'a> {
    has: bool,
    way: Option<&'a str>,
}

/// A line of CLUSTER NODES: id, address, flags, master, two times, epoch, link, and slots: `0-5460`, `77`; of the node that was asked also
/// `[93->-<id>]` for one that leaves and `[77-<-<id>]` for one that comes.
struct Line<'a> {
    id: &'a str,
    place: &'a str,
    flags: &'a str,
    epoch: u64,
    slots: Vec<&'a str>,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Option<Line<'a>> {
        let mut words = line.split(' ');
        let (id, place, flags) = (words.next()?, words.next()?, words.next()?);
        let epoch = words.nth(3)?.parse().ok()?;
        Some(Line { id, place, flags, epoch, slots: words.skip(1).collect() })
    }

    fn is(&self, flag: &str) -> bool {
        self.flags.split(',').any(|own| own == flag)
    }

    /// Host and port, `10.0.0.1:6379@16379,name,...`: the name, if it announces one.
    fn host_and_port(&self) -> Option<(String, u16)> {
        let (place, more) = self.place.split_once('@')?;
        let (host, port) = place.rsplit_once(':')?;
        let name = more.split(',').nth(1).filter(|name| !name.is_empty() && !name.contains('='));
        Some((name.unwrap_or(host).to_owned(), port.parse().ok()?))
    }
}

impl Share {
    /// What the node that was asked says of itself, and its id; nothing if it is no master.
    pub fn parse(node: usize, text: &str) -> Option<(String, Share)> {
        let line = text.lines().filter_map(Line::parse).find(|line| line.is("myself") && line.is("master"))?;
        let slots = line.slots.iter().filter_map(|range| slots_of(range)).flat_map(|(first, last)| first..=last);
        let ways = line.slots.iter().filter_map(|way| {
            let (slot, peer) = way.strip_prefix('[')?.strip_suffix(']')?.split_once('-')?;
            let slot = slot.parse().ok().filter(|slot| *slot < SLOTS)?;
            Some((slot, format!("-{peer}")))
        });
        Some((line.id.to_owned(), Share { node, epoch: line.epoch, slots: slots.collect(), ways: ways.collect() }))
    }

    /// How many slots it has.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// Slots that it has no more or has now, and those that began or ceased to be on their way.
    pub fn changed(&self, now: &Share) -> BTreeSet<u16> {
        let ways = self.ways.iter().filter(|(slot, way)| now.ways.get(slot) != Some(way));
        let others = now.ways.keys().filter(|slot| !self.ways.contains_key(slot));
        self.slots.symmetric_difference(&now.slots).chain(ways.map(|(slot, _)| slot)).chain(others).copied().collect()
    }

    /// To whom it is giving slots.
    fn targets(&self) -> impl Iterator<Item = (u16, &str)> {
        self.ways.iter().filter_map(|(slot, way)| Some((*slot, way.strip_prefix("->-")?)))
    }
}

impl Layout {
    /// One server has everything.
    pub fn of_one() -> Layout {
        let all = Share { slots: (0..SLOTS).collect(), ..Share::default() };
        Layout { shares: [(String::new(), all)].into(), masters: [String::new()].into(), ..Layout::default() }
    }

    /// Takes what a node answered to CLUSTER NODES.
    pub fn take(&mut self, node: usize, text: &str) {
        let own = Share::parse(node, text);
        let gets = |id: &str| own.iter().any(|(_, share)| share.targets().any(|(_, target)| target == id));
        for line in text.lines().filter_map(Line::parse) {
            // `fail?` is a suspicion of one.
            if !line.is("master") || ["fail", "handshake", "noaddr"].into_iter().any(|flag| line.is(flag)) {
                continue;
            }
            self.masters.insert(line.id.to_owned());
            if !line.is("myself") {
                let ranges = line.slots.iter().filter_map(|range| slots_of(range));
                self.hearsay.entry(line.id.to_owned()).or_default().extend(ranges);
            }
            if let (Some(place), true) = (line.host_and_port(), !line.slots.is_empty() || gets(line.id)) {
                self.places.insert(line.id.to_owned(), place);
            }
        }
        // A node may be connected by two names.
        if let Some((id, share)) = own {
            self.shares.entry(id).or_insert(share);
        }
    }

    /// One that has slots or is given some, and has not been asked.
    pub fn stranger(&self, tried: &BTreeSet<String>) -> Option<(String, (String, u16))> {
        let mut strangers = self.places.iter().filter(|(id, _)| !self.shares.contains_key(*id) && !tried.contains(*id));
        strangers.next().map(|(id, place)| (id.clone(), place.clone()))
    }

    /// The master of each slot.
    pub fn owners(&self) -> BTreeMap<u16, &Share> {
        let mut shares: Vec<&Share> = self.shares.values().collect();
        shares.sort_by_key(|share| share.epoch);
        let own = shares.into_iter().flat_map(|share| share.slots.iter().map(move |slot| (*slot, share)));
        let said = self.hearsay.iter().filter_map(|(id, ranges)| Some((self.shares.get(id)?, ranges)));
        let said = said.flat_map(|(share, ranges)| ranges.iter().map(move |range| (share, *range)));
        let said = said.flat_map(|(share, (first, last))| (first..=last).map(move |slot| (slot, share)));
        said.chain(own).collect()
    }

    /// Where to look for the keys of these slots, in this order. Those of a slot on its way go in one direction: they are looked for where they
    /// come from and then where they go to. What the masters say does not always tell which is which (`redis-cli --cluster fix` takes keys
    /// back), so the master of such a slot is looked at before the others and after them.
    pub fn looks(&self, slots: &BTreeSet<u16>) -> Vec<(&Share, BTreeSet<u16>)> {
        let (owners, claims) = (self.owners(), self.claims());
        let mut turns = [const { BTreeMap::<usize, (&Share, BTreeSet<u16>)>::new() }; 3];
        let [first, then, again] = &mut turns;
        for slot in slots {
            let Some(owner) = owners.get(slot) else { continue };
            let concerned = claims.get(slot).into_iter().flatten().filter_map(|(id, _)| self.shares.get(*id));
            let others: Vec<&Share> = concerned.filter(|share| share.node != owner.node).collect();
            first.entry(owner.node).or_insert((owner, BTreeSet::new())).1.insert(*slot);
            if !others.is_empty() {
                again.entry(owner.node).or_insert((owner, BTreeSet::new())).1.insert(*slot);
            }
            for other in others {
                then.entry(other.node).or_insert((other, BTreeSet::new())).1.insert(*slot);
            }
        }
        turns.into_iter().flat_map(BTreeMap::into_values).collect()
    }

    /// What is left of `owed` after a round that began as it lies here and ended as it lies `now`; `unsteady` are slots that were not as it lies
    /// here while somebody was looked at for them. One that stood still where it was looked at may be on its way since; one that is on its way, and
    /// may be so for ever, must be so as before.
    pub fn still_owed(&self, now: &Layout, owed: &BTreeSet<u16>, unsteady: &BTreeSet<u16>) -> BTreeSet<u16> {
        let (before, after) = (self.claims(), now.claims());
        let stood_still =
            |slot: &u16| before.get(slot).is_some_and(|claims| claims.values().eq([&Claim { has: true, way: None }]));
        let stays = |slot: &u16| before.contains_key(slot) && before.get(slot) == after.get(slot);
        let is_done = |slot: &u16| !unsteady.contains(slot) && (stood_still(slot) || stays(slot));
        owed.iter().filter(|slot| !is_done(slot)).copied().collect()
    }

    /// Has somebody slots who was no master before? It took them over from one that failed, and may lack what that one was told.
    pub fn has_replaced(&self, before: &Layout) -> bool {
        self.shares.iter().any(|(id, share)| !share.slots.is_empty() && !before.masters.contains(id))
    }

    /// Who is concerned with each slot.
    fn claims(&self) -> BTreeMap<u16, BTreeMap<&str, Claim<'_>>> {
        let mut claims: BTreeMap<u16, BTreeMap<&str, Claim<'_>>> = BTreeMap::new();
        for (id, share) in &self.shares {
            for slot in &share.slots {
                claims.entry(*slot).or_default().entry(id).or_default().has = true;
            }
            for (slot, way) in &share.ways {
                claims.entry(*slot).or_default().entry(id).or_default().way = Some(way);
            }
            // Of one that is not listed any more nothing is left.
            for (slot, target) in share.targets().filter(|(_, target)| self.shares.contains_key(*target)) {
                claims.entry(slot).or_default().entry(target).or_default();
            }
        }
        claims
    }
}

/// `0-5460`, or `77`; nothing of slots that there are not.
fn slots_of(range: &str) -> Option<(u16, u16)> {
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    Some((first.parse().ok()?, last.parse().ok()?)).filter(|(_, last)| *last < SLOTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The layout of masters a, b and c, which have a third each, as `slots` of them say: `a 0-5460 [7->-b]`.
    fn layout(slots: &[&str]) -> Layout {
        let mut layout = Layout::default();
        for node in 0..slots.len() {
            let line = |(index, text): (usize, &&str)| {
                let (id, slots) = text.split_once(' ').unwrap_or((text, ""));
                let (id, epoch) = id.split_once('@').unwrap_or((id, "1"));
                let myself = if index == node { "myself," } else { "" };
                let plain: Vec<&str> =
                    slots.split(' ').filter(|word| index == node || !word.starts_with('[')).collect();
                format!("{id} h:{}@1 {myself}master - 0 1 {epoch} connected {}", 7_000 + index, plain.join(" "))
            };
            let text: Vec<String> = slots.iter().enumerate().map(line).collect();
            layout.take(node, &text.join("\n"));
        }
        layout
    }

    const STILL: [&str; 3] = ["a 0-5460", "b 5461-10922", "c 10923-16383"];

    #[test]
    fn slots_that_there_are_not_are_nobodys() {
        let layout = layout(&["a 0-5460 16000-20000 [16384->-b]", "b 65535"]);
        assert_eq!(layout.owners().len(), 5_461);
        assert!(layout.claims().keys().all(|slot| *slot < SLOTS));
    }

    #[test]
    fn slots_that_moved_under_a_round_are_owed_again() {
        let on_its_way = ["a 0-5460 [7->-b]", "b 5461-10922 [7-<-a]", STILL[2]];
        let arrived = ["a 0-6 8-5460", "b@2 7 5461-10922", STILL[2]];
        let half_arrived = ["a 0-5460 [7->-b]", "b@2 7 5461-10922", STILL[2]];
        let nobodys = ["a 0-6 8-5460", STILL[1], STILL[2]];
        let importing = [STILL[0], "b 5461-10922 [7-<-a]", STILL[2]];
        for (what, before, after, unsteady, owed) in [
            ("nothing moved", STILL, STILL, vec![], vec![]),
            ("it left when it had been looked at", STILL, on_its_way, vec![], vec![]),
            ("it left and arrived when it had been looked at", STILL, arrived, vec![], vec![]),
            ("it left while it was looked at", STILL, arrived, vec![7], vec![7]),
            ("it was away only while it was looked at", STILL, STILL, vec![7], vec![7]),
            ("it is on its way for ever", on_its_way, on_its_way, vec![], vec![]),
            ("it is expected for ever", importing, importing, vec![], vec![]),
            ("the master of it was not told yet", half_arrived, half_arrived, vec![], vec![]),
            ("it was on its way and arrived", on_its_way, arrived, vec![], vec![7]),
            ("it was on its way and turned back", on_its_way, STILL, vec![], vec![7]),
            ("it was expected and set out", importing, on_its_way, vec![], vec![7]),
            ("it arrived and the one before was not told yet", on_its_way, half_arrived, vec![], vec![7]),
            ("it was handed over between two answers", nobodys, nobodys, vec![], vec![7]),
            ("the one before was told as well", half_arrived, arrived, vec![], vec![7]),
        ] {
            let (before, after) = (layout(&before), layout(&after));
            let left = before.still_owed(&after, &[7, 8, 9_000].into(), &unsteady.into_iter().collect());
            assert_eq!(left.into_iter().collect::<Vec<_>>(), owed, "{what}");
        }
    }

    #[test]
    fn what_a_master_has_otherwise() {
        let share = |text: &str| Share::parse(0, &format!("a h:1@1 myself,master - 0 0 1 connected {text}")).unwrap().1;
        for (before, now, changed) in [
            ("0-9", "0-9", vec![]),
            ("0-9", "0-6 8-9", vec![7]),
            ("0-6", "0-7 9", vec![7, 9]),
            ("0-9", "0-9 [7->-b]", vec![7]),
            ("0-9 [7->-b]", "0-9 [7->-b]", vec![]),
            ("0-9 [7->-b]", "0-9 [7->-c]", vec![7]),
            ("0-9 [7->-b]", "0-9 [8->-b]", vec![7, 8]),
            ("0-9 [77-<-b]", "0-9 77", vec![77]),
            ("0-9", "", (0..10).collect()),
        ] {
            let found: Vec<u16> = share(before).changed(&share(now)).into_iter().collect();
            assert_eq!(found, changed, "{before} {now}");
        }
    }

    #[test]
    fn where_keys_are_looked_for() {
        let looks = |layout: &Layout| -> Vec<(usize, Vec<u16>)> {
            let looks = layout.looks(&[7, 8, 9_000].into());
            looks.into_iter().map(|(share, slots)| (share.node, slots.into_iter().collect())).collect()
        };
        let still = vec![(0, vec![7, 8]), (1, vec![9_000])];
        let there_and_back = [still.clone(), vec![(1, vec![7]), (0, vec![7])]].concat();
        assert_eq!(looks(&layout(&STILL)), still);
        assert_eq!(looks(&layout(&["a 0-5460 [7->-b]", "b 5461-10922 [7-<-a]", STILL[2]])), there_and_back);
        assert_eq!(looks(&layout(&["a 0-5460 [7->-b]", STILL[1], STILL[2]])), there_and_back, "not announced there");
        assert_eq!(looks(&layout(&[STILL[0], "b 5461-10922 [7-<-a]", STILL[2]])), there_and_back, "nor here");
        assert_eq!(looks(&layout(&["a 0-5460 [7->-gone]", STILL[1], STILL[2]])), still);
        // Two say that they have it: the later one has.
        let twice = layout(&[STILL[0], "b@2 7 5461-10922", STILL[2]]);
        assert_eq!(looks(&twice), [(0, vec![8]), (1, vec![7, 9_000]), (0, vec![7]), (1, vec![7])]);
        // Each says that another has it: nobody is asked who was not, and somebody is asked.
        let mut nobodys = layout(&["a 0-6 8-5460", STILL[1], STILL[2]]);
        assert_eq!(looks(&nobodys), [(0, vec![8]), (1, vec![9_000])]);
        nobodys.hearsay = [("c".to_owned(), [(7, 8)].into())].into();
        assert_eq!(looks(&nobodys), [(0, vec![8]), (1, vec![9_000]), (2, vec![7])]);
        assert_eq!(looks(&Layout::of_one()), [(0, vec![7, 8, 9_000])]);
    }

    #[test]
    fn one_server_is_done_after_one_round() {
        let (layout, all) = (Layout::of_one(), (0..SLOTS).collect());
        assert!(!Layout::of_one().has_replaced(&layout));
        assert!(layout.still_owed(&Layout::of_one(), &all, &BTreeSet::new()).is_empty());
    }

    /// Moving slots never look like a failover, not even to a master that had none.
    #[test]
    fn who_took_over() {
        let with = |fourth: &str| layout(&["a 0-5460", STILL[1], STILL[2], fourth]);
        let before = with("d");
        assert!(!layout(&["a", STILL[1], STILL[2], "d 0-5460"]).has_replaced(&before), "it was drained");
        assert!(!before.has_replaced(&before));
        assert!(layout(&["a", STILL[1], STILL[2], "e 0-5460"]).has_replaced(&before), "its replica");
    }

    #[test]
    fn those_to_ask_as_well() {
        let mut layout = Layout::default();
        let lines = [
            "a 10.0.0.1:7000@1 myself,master - 0 0 1 connected 0-5460 [7->-d] [8->-x]",
            "b 10.0.0.2:7000@1 master - 0 1 2 connected 5461-10922",
            "c 10.0.0.3:7000@1,node3.example master,fail - 0 1 3 connected 10923-16383",
            "d 10.0.0.4:7000@1,node4.example master - 0 1 0 connected",
            "e 10.0.0.5:7000@1 master - 0 1 0 connected",
            "f 10.0.0.6:7000@1 slave a 0 1 1 connected",
        ];
        layout.take(0, &lines.join("\n"));
        let tried = |ids: &[&str]| layout.stranger(&ids.iter().map(|id| (*id).to_owned()).collect());
        assert_eq!(tried(&[]), Some(("b".into(), ("10.0.0.2".into(), 7_000))));
        assert_eq!(tried(&["b"]), Some(("d".into(), ("node4.example".into(), 7_000))));
        assert_eq!(tried(&["b", "d"]), None, "one without slots has no keys, and one that failed no connection");
    }

    #[test]
    fn places_of_nodes() {
        let place = |text: &str| {
            let line = format!("07c37df {text} master - 0 1 4 connected 0-5460");
            Line::parse(&line).unwrap().host_and_port()
        };
        assert_eq!(place("127.0.0.1:30004@31004"), Some(("127.0.0.1".into(), 30_004)));
        assert_eq!(place("127.0.0.1:30004@31004,node4.example"), Some(("node4.example".into(), 30_004)));
        assert_eq!(place("[::1]:30004@31004,,shard-id=69bc"), Some(("[::1]".into(), 30_004)));
        assert_eq!(place(":0@0"), Some((String::new(), 0)));
    }
}
