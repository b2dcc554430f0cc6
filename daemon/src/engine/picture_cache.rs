//! Pictures that were decoded before, within a budget of bytes: the least recently used go first. Pure: it
//! knows neither what a picture is nor what a look is.
//!
//! Pictures that were decoded *ahead*, because somebody was going to ask for them, count as used when they come. Until
//! they are asked for they have at most half of the budget, so that hints which nobody follows never push out more.
//!
//! What does not live here: decoding and conversion, and the decision what is worth keeping; see `run`.

use std::collections::{BTreeMap, HashMap};

use reeld_protocol::ids::StreamIndex;

use super::wanted::Shown;
use crate::link::CatalogId;

/// Looks in which one picture is kept: a batch may be asked for in two or three. Random crops are different each
/// time, and would otherwise pile up on pictures that are used often.
const CONVERTED_COUNT_MAX: usize = 3;

/// One part in so many of the budget is for pictures that were decoded ahead and not asked for. They are used soon or
/// never; those that were asked for are of use again where a file is read twice.
const AHEAD_SHARE: usize = 2;

/// Which stream of which file.
pub type StreamKey = (CatalogId, StreamIndex);

/// A cache of pictures `P`, and of frames made of them, told apart by their look `L`.
pub struct PictureCache<P, L> {
    budget_bytes: usize,
    used_bytes: usize,
    /// Of these, bytes of pictures that were decoded ahead and not asked for.
    ahead_bytes: usize,
    streams: HashMap<StreamKey, BTreeMap<i64, Entry<P, L>>>,
    /// From the least to the most recently used.
    order: BTreeMap<Turn, (StreamKey, i64)>,
    /// Of these, the ones that were decoded ahead and not asked for.
    ahead: BTreeMap<Turn, (StreamKey, i64)>,
    next_turn: Turn,
}

/// Counts uses. At a million a second it lasts half a million years.
type Turn = u64;

struct Entry<P, L> {
    shown: Shown,
    turn: Turn,
    /// Nobody has asked for it yet.
    is_ahead: bool,
    forms: Vec<Form<P, L>>,
}

/// One form in which a picture is kept.
#[derive(Debug, PartialEq, Eq)]
pub enum Form<P, L> {
    /// As it was decoded, and the bytes of memory that it keeps alive.
    Native(P, usize),
    /// As it was delivered.
    Converted(L, Box<[u8]>),
}

/// A picture that was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Hit<'cache, P> {
    /// When it is shown.
    pub shown: Shown,
    /// It was decoded ahead, and this is the first time that it is asked for.
    pub was_ahead: bool,
    /// The best form there is.
    pub form: HitForm<'cache, P>,
}

/// What was found of a picture.
#[derive(Debug, PartialEq, Eq)]
pub enum HitForm<'cache, P> {
    /// To be converted.
    Native(&'cache P),
    /// To be copied.
    Converted(&'cache [u8]),
}

impl<P, L: PartialEq> PictureCache<P, L> {
    /// A cache of at most so many bytes; 0 keeps nothing.
    pub fn new(budget_bytes: usize) -> Self {
        PictureCache {
            budget_bytes,
            used_bytes: 0,
            ahead_bytes: 0,
            streams: HashMap::new(),
            order: BTreeMap::new(),
            ahead: BTreeMap::new(),
            next_turn: 0,
        }
    }

    /// Bytes that are used now.
    pub fn bytes(&self) -> usize {
        self.used_bytes
    }

    /// The picture with this pts, in a form that serves `look`.
    pub fn find(&mut self, stream: StreamKey, pts: i64, look: &L) -> Option<Hit<'_, P>> {
        let turn = self.next_turn;
        let entry = self.streams.get_mut(&stream)?.get_mut(&pts)?;
        let position = entry.best_form(look)?;
        let was_ahead = std::mem::take(&mut entry.is_ahead);
        if was_ahead {
            self.ahead.remove(&entry.turn);
            self.ahead_bytes -= entry.bytes();
        }
        self.order.remove(&entry.turn);
        self.order.insert(turn, (stream, pts));
        entry.turn = turn;
        self.next_turn += 1;
        let form = match &entry.forms[position] {
            Form::Native(picture, _) => HitForm::Native(picture),
            Form::Converted(_, bytes) => HitForm::Converted(bytes),
        };
        Some(Hit { shown: entry.shown, was_ahead, form })
    }

    /// The pts of the last picture at or before `pts` for which `is_meant` is true, among the two last ones.
    /// Two, because the tick nearest to a time may lie on the other side of a picture's begin.
    pub fn find_pts(&self, stream: StreamKey, pts: i64, is_meant: impl Fn(Shown) -> bool) -> Option<i64> {
        let entries = self.streams.get(&stream)?;
        let candidates = entries.range(..=pts.saturating_add(1)).rev().take(2);
        candidates
            .map(|(pts, entry)| (pts, entry.shown))
            .find(|(_, shown)| is_meant(*shown))
            .map(|(pts, _)| *pts)
    }

    /// True if there is any form of the picture.
    pub fn contains(&self, stream: StreamKey, pts: i64) -> bool {
        self.streams.get(&stream).is_some_and(|entries| entries.contains_key(&pts))
    }

    /// Keeps one more form of a picture, in place of the same form if there was one.
    pub fn insert(&mut self, stream: StreamKey, shown: Shown, form: Form<P, L>) {
        if form.bytes() > self.budget_bytes {
            return;
        }
        let turn = self.next_turn;
        self.next_turn += 1;
        let entries = self.streams.entry(stream).or_default();
        let new = Entry { shown, turn, is_ahead: false, forms: Vec::new() };
        let entry = entries.entry(shown.pts).or_insert(new);
        if std::mem::take(&mut entry.is_ahead) {
            self.ahead.remove(&entry.turn);
            self.ahead_bytes -= entry.bytes();
        }
        self.order.remove(&entry.turn);
        self.order.insert(turn, (stream, shown.pts));
        entry.turn = turn;
        self.used_bytes += form.bytes();
        let replaced = entry.forms.extract_if(.., |other| other.is_same_kind(&form));
        self.used_bytes -= replaced.map(|form| form.bytes()).sum::<usize>();
        entry.forms.push(form);
        self.used_bytes -= entry.drop_surplus().map_or(0, |form| form.bytes());
        self.shrink();
    }

    /// Keeps a picture that somebody is going to ask for. False where it is not kept, or was there already.
    pub fn insert_ahead(&mut self, stream: StreamKey, shown: Shown, form: Form<P, L>) -> bool {
        let bytes = form.bytes();
        if bytes > self.ahead_bytes_max() || self.refresh(stream, shown.pts) {
            return false;
        }
        while self.ahead_bytes + bytes > self.ahead_bytes_max() {
            let Some((_, (stream, pts))) = self.ahead.first_key_value() else { break };
            let (stream, pts) = (*stream, *pts);
            self.remove(stream, pts);
        }
        self.insert(stream, shown, form);
        if let Some(entry) = self.streams.get_mut(&stream).and_then(|entries| entries.get_mut(&shown.pts)) {
            entry.is_ahead = true;
            self.ahead.insert(entry.turn, (stream, shown.pts));
            self.ahead_bytes += bytes;
        }
        true
    }

    /// Counts a use of a picture that is there, without asking for it. False where it is not.
    pub fn refresh(&mut self, stream: StreamKey, pts: i64) -> bool {
        let turn = self.next_turn;
        let entry = self.streams.get_mut(&stream).and_then(|entries| entries.get_mut(&pts));
        let Some(entry) = entry else { return false };
        self.next_turn += 1;
        self.order.remove(&entry.turn);
        self.order.insert(turn, (stream, pts));
        if entry.is_ahead {
            self.ahead.remove(&entry.turn);
            self.ahead.insert(turn, (stream, pts));
        }
        entry.turn = turn;
        true
    }

    /// Forgets a file's pictures.
    pub fn drop_source(&mut self, source: CatalogId) {
        let streams = self.streams.extract_if(|(other, _), _| *other == source);
        for entry in streams.flat_map(|(_, entries)| entries.into_values()) {
            self.order.remove(&entry.turn);
            self.used_bytes -= entry.bytes();
            if entry.is_ahead {
                self.ahead.remove(&entry.turn);
                self.ahead_bytes -= entry.bytes();
            }
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.streams.clear();
        self.order.clear();
        self.ahead.clear();
        (self.used_bytes, self.ahead_bytes) = (0, 0);
    }

    fn ahead_bytes_max(&self) -> usize {
        self.budget_bytes / AHEAD_SHARE
    }

    fn shrink(&mut self) {
        while self.used_bytes > self.budget_bytes {
            let Some((_, (stream, pts))) = self.order.first_key_value() else { return };
            let (stream, pts) = (*stream, *pts);
            self.remove(stream, pts);
        }
    }

    fn remove(&mut self, stream: StreamKey, pts: i64) {
        let Some(entries) = self.streams.get_mut(&stream) else { return };
        let Some(entry) = entries.remove(&pts) else { return };
        if entries.is_empty() {
            self.streams.remove(&stream);
        }
        self.order.remove(&entry.turn);
        self.used_bytes -= entry.bytes();
        if entry.is_ahead {
            self.ahead.remove(&entry.turn);
            self.ahead_bytes -= entry.bytes();
        }
    }
}

impl<P, L: PartialEq> Entry<P, L> {
    fn best_form(&self, look: &L) -> Option<usize> {
        let converted = self.forms.iter().position(|form| match form {
            Form::Native(..) => false,
            Form::Converted(other, _) => other == look,
        });
        converted.or_else(|| self.forms.iter().position(|form| matches!(form, Form::Native(..))))
    }

    /// The oldest look, if there are too many.
    fn drop_surplus(&mut self) -> Option<Form<P, L>> {
        let is_converted = |form: &Form<P, L>| matches!(form, Form::Converted(..));
        let count = self.forms.iter().filter(|form| is_converted(form)).count();
        let oldest = self.forms.iter().position(is_converted).filter(|_| count > CONVERTED_COUNT_MAX)?;
        Some(self.forms.remove(oldest))
    }

    fn bytes(&self) -> usize {
        self.forms.iter().map(Form::bytes).sum()
    }
}

impl<P, L: PartialEq> Form<P, L> {
    fn bytes(&self) -> usize {
        match self {
            Form::Native(_, bytes) => *bytes,
            Form::Converted(_, bytes) => bytes.len(),
        }
    }

    fn is_same_kind(&self, other: &Self) -> bool {
        match (self, other) {
            (Form::Native(..), Form::Native(..)) => true,
            (Form::Converted(look, _), Form::Converted(other, _)) => look == other,
            (Form::Native(..), Form::Converted(..)) | (Form::Converted(..), Form::Native(..)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Cache = PictureCache<i64, u8>;

    const STREAM: StreamKey = (CatalogId(1), StreamIndex(0));

    fn shown(pts: i64) -> Shown {
        Shown { pts, duration: 5, earlier_end: pts }
    }

    fn cache_of(budget_bytes: usize, pictures: &[(i64, usize)]) -> Cache {
        let mut cache = Cache::new(budget_bytes);
        for &(pts, bytes) in pictures {
            cache.insert(STREAM, shown(pts), Form::Native(pts, bytes));
        }
        cache
    }

    #[test]
    fn least_recently_used_goes_first() {
        let mut cache = cache_of(30, &[(0, 10), (5, 10), (10, 10)]);
        assert!(cache.find(STREAM, 0, &0).is_some());
        cache.insert(STREAM, shown(15), Form::Native(15, 10));
        assert!(cache.contains(STREAM, 0));
        assert!(!cache.contains(STREAM, 5));
    }

    #[test]
    fn budget_of_zero_keeps_nothing() {
        assert!(!cache_of(0, &[(0, 1)]).contains(STREAM, 0));
    }

    #[test]
    fn picture_above_the_budget_pushes_nothing_out() {
        let cache = cache_of(30, &[(0, 10), (5, 31)]);
        assert!(cache.contains(STREAM, 0));
        assert_eq!(cache.bytes(), 10);
    }

    #[test]
    fn converted_form_of_the_same_look_is_preferred() {
        let mut cache = cache_of(100, &[(0, 10)]);
        cache.insert(STREAM, shown(0), Form::Converted(7, vec![1, 2].into()));
        let form = |cache: &mut Cache, look| match cache.find(STREAM, 0, &look).unwrap().form {
            HitForm::Native(_) => "native",
            HitForm::Converted(_) => "converted",
        };
        assert_eq!(form(&mut cache, 7), "converted");
        assert_eq!(form(&mut cache, 8), "native");
        assert_eq!(cache.bytes(), 12);
    }

    #[test]
    fn converted_form_of_another_look_is_no_hit() {
        let mut cache = Cache::new(100);
        cache.insert(STREAM, shown(0), Form::Converted(7, vec![1, 2].into()));
        assert!(cache.find(STREAM, 0, &8).is_none());
    }

    #[test]
    fn oldest_look_goes_where_a_picture_has_too_many() {
        let mut cache = cache_of(100, &[(0, 10)]);
        for look in 0..=CONVERTED_COUNT_MAX as u8 {
            cache.insert(STREAM, shown(0), Form::Converted(look, vec![look].into()));
        }
        let mut is_converted =
            |look| matches!(cache.find(STREAM, 0, &look).unwrap().form, HitForm::Converted(_));
        assert_eq!([0, 1, 2, 3].map(&mut is_converted), [false, true, true, true]);
        assert_eq!(cache.bytes(), 13);
    }

    #[test]
    fn same_form_replaces_the_old_one() {
        let cache = cache_of(100, &[(0, 10), (0, 12)]);
        assert_eq!(cache.bytes(), 12);
    }

    #[test]
    fn time_inside_a_picture_finds_it_and_a_gap_finds_nothing() {
        let cache = cache_of(100, &[(0, 10), (20, 10)]);
        let find = |pts: i64| cache.find_pts(STREAM, pts, |shown| shown.pts <= pts && pts < shown.end());
        assert_eq!(find(4), Some(0));
        assert_eq!(find(5), None);
        assert_eq!(find(20), Some(20));
    }

    #[test]
    fn dropped_source_leaves_the_others() {
        let other = (CatalogId(2), StreamIndex(0));
        let mut cache = cache_of(100, &[(0, 10)]);
        cache.insert(other, shown(0), Form::Native(0, 10));
        cache.drop_source(STREAM.0);
        assert_eq!((cache.bytes(), cache.contains(other, 0)), (10, true));
    }

    fn insert_ahead(cache: &mut Cache, pts: i64, bytes: usize) -> bool {
        cache.insert_ahead(STREAM, shown(pts), Form::Native(pts, bytes))
    }

    #[test]
    fn picture_decoded_ahead_is_so_until_it_is_asked_for() {
        let mut cache = Cache::new(100);
        assert!(insert_ahead(&mut cache, 0, 10));
        assert!(!insert_ahead(&mut cache, 0, 10));
        assert!(cache.find(STREAM, 0, &0).unwrap().was_ahead);
        assert!(!cache.find(STREAM, 0, &0).unwrap().was_ahead);
        assert_eq!((cache.bytes(), cache.ahead_bytes), (10, 0));
    }

    #[test]
    fn pictures_that_nobody_asks_for_have_half_of_the_budget_and_the_oldest_goes() {
        let mut cache = cache_of(40, &[(100, 10), (105, 10)]);
        for pts in [0, 5, 10] {
            assert!(insert_ahead(&mut cache, pts, 10));
        }
        assert_eq!(
            [0, 5, 10, 100, 105].map(|pts| cache.contains(STREAM, pts)),
            [false, true, true, true, true]
        );
        assert!(!insert_ahead(&mut cache, 15, 21));
    }

    #[test]
    fn picture_that_was_asked_for_makes_room_for_the_next_one_ahead() {
        let mut cache = Cache::new(40);
        for pts in [0, 5] {
            insert_ahead(&mut cache, pts, 10);
        }
        assert!(cache.find(STREAM, 0, &0).is_some());
        insert_ahead(&mut cache, 10, 10);
        assert_eq!([0, 5, 10].map(|pts| cache.contains(STREAM, pts)), [true; 3]);
    }

    /// The same cache as a plain list, searched from end to end: the last entry is the last used.
    #[derive(Default)]
    struct Model(Vec<(i64, Vec<ModelForm>)>, Vec<i64>);

    /// The look, or none for the native form, and the bytes.
    type ModelForm = (Option<u8>, usize);

    impl Model {
        fn touch(&mut self, pts: i64) {
            if let Some(position) = self.0.iter().position(|(other, _)| *other == pts) {
                let entry = self.0.remove(position);
                self.0.push(entry);
            }
        }

        fn insert(&mut self, pts: i64, kind: Option<u8>, bytes: usize, budget_bytes: usize) {
            if bytes > budget_bytes {
                return;
            }
            if !self.0.iter().any(|(other, _)| *other == pts) {
                self.0.push((pts, Vec::new()));
            }
            self.touch(pts);
            self.1.retain(|&other| other != pts);
            let forms = &mut self.0.last_mut().unwrap().1;
            forms.retain(|(other, _)| *other != kind);
            forms.push((kind, bytes));
            let converted: Vec<usize> = (0..forms.len()).filter(|&place| forms[place].0.is_some()).collect();
            if converted.len() > CONVERTED_COUNT_MAX {
                forms.remove(converted[0]);
            }
            while self.bytes() > budget_bytes {
                self.0.remove(0);
            }
        }

        fn insert_ahead(&mut self, pts: i64, bytes: usize, budget_bytes: usize) {
            if bytes > budget_bytes / 2 {
                return;
            }
            if self.0.iter().any(|(other, _)| *other == pts) {
                return self.touch(pts);
            }
            while self.ahead_bytes() + bytes > budget_bytes / 2 {
                let oldest = self.0.iter().position(|(pts, _)| self.1.contains(pts)).unwrap();
                self.0.remove(oldest);
            }
            self.insert(pts, None, bytes, budget_bytes);
            self.1.push(pts);
        }

        fn ahead_bytes(&self) -> usize {
            let ahead = self.0.iter().filter(|(pts, _)| self.1.contains(pts));
            ahead.flat_map(|(_, forms)| forms).map(|(_, bytes)| bytes).sum()
        }

        fn bytes(&self) -> usize {
            self.0.iter().flat_map(|(_, forms)| forms).map(|(_, bytes)| bytes).sum()
        }
    }

    proptest! {
        #[test]
        fn cache_does_what_a_plain_list_does(
            budget_bytes in 0..60usize,
            operations in proptest::collection::vec((0..4u8, 0..8i64, 0..6u8, 1..20usize), 1..80),
        ) {
            let mut cache = Cache::new(budget_bytes);
            let mut model = Model::default();
            for (operation, pts, look, bytes) in operations {
                if operation == 0 {
                    let hit = cache.find(STREAM, pts, &look).is_some();
                    let forms = model.0.iter().find(|(other, _)| *other == pts).map(|(_, forms)| forms.clone());
                    let is_kept = forms.unwrap_or_default().iter().any(|(kind, _)| kind.is_none_or(|kind| kind == look));
                    prop_assert_eq!(hit, is_kept);
                    if hit {
                        model.touch(pts);
                        model.1.retain(|&other| other != pts);
                    }
                } else if operation == 3 {
                    cache.insert_ahead(STREAM, shown(pts), Form::Native(pts, bytes));
                    model.insert_ahead(pts, bytes, budget_bytes);
                } else if operation == 1 {
                    cache.insert(STREAM, shown(pts), Form::Native(pts, bytes));
                    model.insert(pts, None, bytes, budget_bytes);
                } else {
                    cache.insert(STREAM, shown(pts), Form::Converted(look, vec![0; bytes].into()));
                    model.insert(pts, Some(look), bytes, budget_bytes);
                }
                model.1.retain(|pts| model.0.iter().any(|(other, _)| other == pts));
                prop_assert_eq!((cache.bytes(), cache.ahead_bytes), (model.bytes(), model.ahead_bytes()));
                prop_assert_eq!(cache.ahead.len(), model.1.len());
                prop_assert!(cache.bytes() <= budget_bytes);
                for pts in 0..8 {
                    let is_kept = model.0.iter().any(|(other, _)| *other == pts);
                    prop_assert_eq!(cache.contains(STREAM, pts), is_kept);
                }
            }
        }
    }
}
