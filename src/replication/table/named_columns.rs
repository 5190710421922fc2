//! The columns that a table's entry in the Mirror names, kept by attribute number.
//!
//! A name is resolved once, when the table is added. A rename at the source then changes neither what is left
//! out nor what is mirrored: where a name parts from its column, the table stops alone before anything else
//! is made of its columns.
//!
//! The stream describes columns by name only, as they were when a row was written. So a column that is left
//! out is identified by its name only while its catalog row is the one on record: then it had that name all
//! the time. Where the row was written again and has the name still, it may have had another one for a while,
//! and rows from up to then are taken only when they have it at its place.

use serde::{Deserialize, Serialize};

use super::record::TableRecord;
use crate::{
    fault::{Reason, Remedy},
    model::{Lsn, TableId, TableSchema, TableSpec},
    postgres::{
        catalog::{ColumnList, LiveColumn, NamedColumn, Parted},
        pgoutput::Relation,
    },
    replication::Error,
};

/// What the names of a table's entry mean.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedColumns {
    /// One for each name in each list.
    pub columns: Vec<NamedColumn>,
    /// The attribute numbers of all columns that the stream sends, in order.
    pub attnums: Vec<i16>,
    /// Excluded columns may have had other names for a while in transactions that committed up to here.
    #[serde(default)]
    pub as_of: Lsn,
}

/// What the catalog says of columns that still have their names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::replication) enum Renewal {
    /// Nothing to note.
    Same,
    /// To be recorded.
    Renewed(NamedColumns),
    /// Which column the stream's names mean is not known for rows of before: they have to be copied again.
    Ambiguous,
}

impl NamedColumns {
    /// Resolves the names of a table's entry. `filter_columns` are those that its row filter names.
    pub(in crate::replication) fn resolve(
        spec: &TableSpec,
        filter_columns: &[String],
        live: &[LiveColumn],
    ) -> Self {
        let rename = spec.rename.iter().map(|(name, _)| (ColumnList::Rename, name));
        let types = spec.types.iter().map(|(name, _)| (ColumnList::Types, name));
        let exclude = spec.exclude.iter().map(|name| (ColumnList::Exclude, name));
        let filter = filter_columns.iter().map(|name| (ColumnList::Where, name));
        let names = exclude.chain(rename).chain(types).chain(filter);
        NamedColumns {
            columns: names.filter_map(|(list, name)| NamedColumn::find(list, name, live)).collect(),
            attnums: sent(live),
            as_of: Lsn::ZERO,
        }
    }

    /// The same names resolved again by columns that have them still; the row filter's columns are those on
    /// record.
    pub(in crate::replication) fn resolved_again(&self, spec: &TableSpec, live: &[LiveColumn]) -> Self {
        let filter = self.columns.iter().filter(|named| named.list == ColumnList::Where);
        let filter: Vec<String> = filter.map(|named| named.name.clone()).collect();
        NamedColumns::resolve(spec, &filter, live)
    }

    /// Those of a table whose record was made without them, as of its recorded fingerprint, where they mean
    /// what the recorded columns say.
    ///
    /// # Errors
    /// [`renamed`] where a column that was left out would be mirrored, or the other way round.
    pub(in crate::replication) fn adopt(record: &TableRecord, live: &[LiveColumn]) -> Result<Self, Error> {
        let filter = record.published.as_ref().map(|published| published.filter_columns.as_slice());
        let mut found = NamedColumns::resolve(&record.spec, filter.unwrap_or_default(), live);
        let schema = &record.schema;
        let recorded = |attnum: i16| schema.columns.iter().find(|column| column.attnum == attnum);
        let is_mirrored = |attnum: i16| recorded(attnum).is_some();
        let is_excluded = |attnum: i16| found.excluded().any(|named| named.attnum == attnum);
        let asks = |list: &[(String, String)], named: &NamedColumn, has: &str| {
            list.iter().any(|(name, value)| *name == named.name && value == has)
        };
        let is_recorded = |named: &NamedColumn| match (named.list, recorded(named.attnum)) {
            (ColumnList::Where, _) => true,
            (ColumnList::Exclude, column) => column.is_none(),
            (_, None) => false,
            (ColumnList::Rename, Some(column)) => asks(&record.spec.rename, named, &column.target_name),
            (ColumnList::Types, Some(column)) => {
                asks(&record.spec.types, named, column.type_override.as_deref().unwrap_or_default())
            }
        };
        if let Some(named) = found.columns.iter().find(|named| !is_recorded(named)) {
            let detail = format!("{} names column {}, which is another column now", named.list, named.name);
            return Err(renamed(&schema.id, &detail));
        }
        let newest = schema.columns.iter().map(|column| column.attnum).max().unwrap_or_default();
        let was_there = |attnum: i16| match &record.fingerprint {
            Some(fingerprint) => fingerprint.columns.contains_key(&attnum),
            None => attnum < newest,
        };
        let withheld = live.iter().find(|column| {
            let attnum = column.attnum;
            !column.generated && was_there(attnum) && !is_mirrored(attnum) && !is_excluded(attnum)
        });
        match withheld {
            Some(column) => {
                let detail = format!("column {} was left out under another name", column.name);
                Err(renamed(&schema.id, &detail))
            }
            None => {
                if let Some(fingerprint) = &record.fingerprint {
                    for named in &mut found.columns {
                        named.written_by =
                            fingerprint.columns.get(&named.attnum).copied().unwrap_or(named.written_by);
                    }
                    found.attnums = fingerprint.columns.keys().copied().collect();
                }
                Ok(found)
            }
        }
    }

    /// Whether no column is named at all, so that a rename can't part any.
    pub(in crate::replication) fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }

    fn excluded(&self) -> impl Iterator<Item = &NamedColumn> {
        self.columns.iter().filter(|named| named.list == ColumnList::Exclude)
    }

    /// Fails where a name has parted from its column.
    ///
    /// # Errors
    /// [`renamed`]
    pub(in crate::replication) fn require(&self, table: &TableId, live: &[LiveColumn]) -> Result<(), Error> {
        match Parted::find(&self.columns, live) {
            Some(parted) => Err(renamed(table, &parted.to_string())),
            None => Ok(()),
        }
    }

    /// What columns that have their names say of the time before. They were read before the source's log
    /// ended at `read_lsn`.
    pub(in crate::replication) fn renew(&self, live: &[LiveColumn], read_lsn: Lsn) -> Renewal {
        // No name depends on its column's place.
        if self.excluded().next().is_none() {
            return Renewal::Same;
        }
        let written = |named: &NamedColumn| {
            let column = live.iter().find(|column| column.attnum == named.attnum);
            column.map(|column| column.written_by)
        };
        let unwritten = self.excluded().all(|named| written(named) == Some(named.written_by));
        let attnums = sent(live);
        let kept = attnums.starts_with(&self.attnums);
        match (unwritten, kept) {
            (true, _) if attnums == self.attnums => Renewal::Same,
            // The places of columns in relations from up to then count those that are gone.
            (true, false) if self.as_of > Lsn::ZERO => Renewal::Same,
            (true, _) => Renewal::Renewed(NamedColumns { attnums, ..self.clone() }),
            (false, false) => Renewal::Ambiguous,
            (false, true) => {
                let mut renewed = NamedColumns { attnums, as_of: read_lsn, ..self.clone() };
                for named in &mut renewed.columns {
                    named.written_by = written(named).unwrap_or_default();
                }
                Renewal::Renewed(renewed)
            }
        }
    }

    /// Whether the excluded columns are those that a relation calls so, in a transaction that committed at
    /// `commit`.
    ///
    /// A relation lists its columns by attribute number, and none of these is gone: those that came later are
    /// behind them.
    pub(in crate::replication) fn identifies(&self, relation: &Relation, commit: Lsn) -> bool {
        let at_its_place = |named: &NamedColumn| match self.attnums.binary_search(&named.attnum) {
            Ok(place) => relation.columns.get(place).is_some_and(|column| column.name == named.name),
            // Generated, and so not sent.
            Err(_) => true,
        };
        commit > self.as_of || self.excluded().all(at_its_place)
    }

    /// Fails where a column that was left out would be mirrored by a resync that resolves the names again,
    /// unless the entry names it.
    ///
    /// # Errors
    /// [`renamed`]
    pub(in crate::replication) fn require_withheld(
        &self,
        spec: &TableSpec,
        fresh: &TableSchema,
    ) -> Result<(), Error> {
        let names = |name: &String| {
            let pairs = || spec.rename.iter().chain(&spec.types);
            pairs().any(|(named, _)| named == name)
        };
        let exposed = self.excluded().find_map(|named| {
            let column = fresh.columns.iter().find(|column| column.attnum == named.attnum)?;
            (!names(&column.name)).then_some((named, column))
        });
        let Some((named, column)) = exposed else { return Ok(()) };
        let called = match column.name == named.name {
            true => format!("column {} was left out of the mirror", column.name),
            false => format!("column {} was left out of the mirror as {}", column.name, named.name),
        };
        let message = format!("{called}, and nothing in the table's columns names it now");
        let name = &column.name;
        Err(Error::table(&spec.id, Reason::SourceColumnRenamed, message).remedied([Remedy::any_of([
            vec![Remedy::edit("spec.tables[].columns.exclude", format!("add {name}, to keep it out"))],
            vec![Remedy::edit(
                "spec.tables[].columns.rename",
                format!("add {name}: {name}, to have it mirrored"),
            )],
        ])]))
    }
}

/// Why a table is copied again whose stream can't be read by the names of its columns.
pub(in crate::replication) const EXCLUDED_RENAMED: &str =
    "a column that columns.exclude names was altered, and may have had another name for a while";

/// The fault of a table whose entry's names don't mean the columns that they meant.
pub fn renamed(table: &TableId, detail: &str) -> Error {
    let message = format!(
        "{detail}. Nothing more of the table is sent, so that no column that is left out arrives under another name"
    );
    Error::table(table, Reason::SourceColumnRenamed, message).remedied([name_columns(table)])
}

/// What helps where the names of a table's entry have parted from its columns.
fn name_columns(table: &TableId) -> Remedy {
    Remedy::edit("spec.tables[].columns", format!("name the columns of {table} as they are called now"))
}

fn sent(live: &[LiveColumn]) -> Vec<i16> {
    live.iter().filter(|column| !column.generated).map(|column| column.attnum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Column, IdentityKind, SourceType},
        postgres::{catalog::CatalogFingerprint, pgoutput::RelationColumn},
        replication::table::record::TablePhase,
    };

    /// Columns by number, name and the writer of their catalog rows.
    fn live(columns: &[(i16, &str, u32)]) -> Vec<LiveColumn> {
        let column = |(attnum, name, written_by): &(i16, &str, u32)| LiveColumn {
            attnum: *attnum,
            name: (*name).to_owned(),
            type_oid: 25,
            type_modifier: -1,
            generated: false,
            written_by: *written_by,
        };
        columns.iter().map(column).collect()
    }

    fn spec() -> TableSpec {
        TableSpec { exclude: vec!["secret".to_owned()], ..TableSpec::new(TableId::new("public", "t")) }
    }

    fn relation(names: &[&str]) -> Relation {
        let column = |name: &&str| RelationColumn {
            name: (*name).to_owned(),
            type_oid: 25,
            type_modifier: -1,
            key: false,
        };
        Relation {
            oid: 1,
            table: TableId::new("public", "t"),
            identity: IdentityKind::Default,
            columns: names.iter().map(column).collect(),
        }
    }

    const ADDED: &[(i16, &str, u32)] = &[(1, "id", 5), (2, "secret", 5), (3, "token", 5)];

    #[test]
    fn a_name_is_trusted_while_its_column_is_not_written() {
        let named = NamedColumns::resolve(&spec(), &[], &live(ADDED));
        assert_eq!(named.renew(&live(ADDED), Lsn(9)), Renewal::Same);
        assert!(named.identifies(&relation(&["id", "x", "secret"]), Lsn(1)), "nothing was renamed");
        let added = [(1, "id", 5), (2, "secret", 5), (4, "more", 6)];
        let Renewal::Renewed(renewed) = named.renew(&live(&added), Lsn(9)) else { panic!() };
        assert_eq!((renewed.attnums, renewed.as_of), (vec![1, 2, 4], Lsn::ZERO));
        // Where nothing is excluded no place counts, and a new column is no reason to take the table up
        // again.
        let renamed =
            TableSpec { rename: vec![("token".to_owned(), "key".to_owned())], exclude: Vec::new(), ..spec() };
        let named = NamedColumns::resolve(&renamed, &[], &live(ADDED));
        assert_eq!(named.renew(&live(&added), Lsn(9)), Renewal::Same);
    }

    #[test]
    fn a_column_that_was_written_counts_by_its_place_for_the_time_before() {
        let named = NamedColumns::resolve(&spec(), &[], &live(ADDED));
        let written = [(1, "id", 5), (2, "secret", 7), (3, "token", 7), (4, "more", 8)];
        let Renewal::Renewed(renewed) = named.renew(&live(&written), Lsn(9)) else { panic!() };
        assert!(renewed.identifies(&relation(&["id", "secret", "token"]), Lsn(9)));
        assert!(!renewed.identifies(&relation(&["id", "x", "secret"]), Lsn(9)));
        assert!(!renewed.identifies(&relation(&["id"]), Lsn(9)));
        assert!(renewed.identifies(&relation(&["id", "x", "secret"]), Lsn(10)), "it is not written since");
        // A column that goes must not move the places of the others.
        let gone = [(1, "id", 5), (2, "secret", 7), (4, "more", 8)];
        assert_eq!(renewed.renew(&live(&gone), Lsn(20)), Renewal::Same);
        let both = [(1, "id", 5), (2, "secret", 10), (4, "more", 8)];
        assert_eq!(renewed.renew(&live(&both), Lsn(20)), Renewal::Ambiguous);
    }

    #[test]
    fn a_record_without_names_gets_them_where_they_mean_the_same() {
        let id = TableId::new("public", "t");
        let column = |name: &str, attnum| Column { attnum, ..Column::new(name, SourceType::Text) };
        let schema = TableSchema::new(id.clone(), vec![column("id", 1), column("token", 3)]);
        let mut record = TableRecord::new(spec(), schema, TablePhase::Streaming);
        record.fingerprint = Some(CatalogFingerprint {
            columns: [(1, 5), (2, 5), (3, 5)].into_iter().collect(),
            ..CatalogFingerprint::default()
        });
        let adopt = |record: &TableRecord, now: &[(i16, &str, u32)]| NamedColumns::adopt(record, &live(now));
        let adopted =
            adopt(&record, &[(1, "id", 5), (2, "secret", 7), (3, "token", 5), (4, "new", 7)]).unwrap();
        assert_eq!(adopted.columns[0].written_by, 5, "as it was on record");
        for parted in
            [[(1, "id", 5), (2, "token", 7), (3, "secret", 7)], [(1, "id", 5), (2, "x", 7), (4, "secret", 7)]]
        {
            let message = adopt(&record, &parted).unwrap_err().to_string();
            assert!(message.contains("secret") || message.contains("column x was left out"), "{message}");
        }
        record.fingerprint = None;
        assert!(adopt(&record, &[(1, "id", 5), (2, "x", 7), (3, "token", 5), (4, "secret", 7)]).is_err());
        record.spec.rename = vec![("token".to_owned(), "key".to_owned())];
        assert!(adopt(&record, ADDED).is_err(), "its target is not called so");
        record.schema.columns[1].target_name = "key".to_owned();
        assert!(adopt(&record, ADDED).is_ok());
    }

    #[test]
    fn what_was_left_out_is_mirrored_only_by_name() {
        let named = NamedColumns::resolve(&spec(), &[], &live(ADDED));
        let column = |name: &str, attnum| Column { attnum, ..Column::new(name, SourceType::Text) };
        let schema = |columns| TableSchema::new(TableId::new("public", "t"), columns);
        let fresh = schema(vec![column("id", 1), column("old", 2)]);
        let refused = named.require_withheld(&spec(), &fresh).unwrap_err();
        let either = [
            vec![Remedy::edit("spec.tables[].columns.exclude", "add old, to keep it out")],
            vec![Remedy::edit("spec.tables[].columns.rename", "add old: old, to have it mirrored")],
        ];
        let failure = crate::replication::failure(&refused);
        assert_eq!(failure.remedies, [Remedy::any_of(either)]);
        let asked = TableSpec { rename: vec![("old".to_owned(), "old".to_owned())], ..spec() };
        assert!(named.require_withheld(&asked, &fresh).is_ok());
        assert!(named.require_withheld(&spec(), &schema(vec![column("id", 1), column("secret", 5)])).is_ok());
    }
}
