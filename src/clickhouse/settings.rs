//! The settings that decide what a statement means or whether all of its answer comes: pinned for each
//! statement, so that the user's settings profile decides about resources alone.
//!
//! Which of them a release has is asked once: it refuses one that it does not know.

use std::collections::HashSet;

/// What a statement does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Reads rows or the catalog.
    Query,
    /// Makes or changes tables.
    Ddl,
    /// Writes rows that we send. What materialized views on the target do with them is up to their owner's
    /// settings.
    Insert,
}

/// The query for the server's release and time zone, whether the user is read-only, and the names of the
/// settings that the release has.
pub(super) const SERVER: &str = "SELECT version(), timezone(), toString(getSetting('readonly')), \
                                 arrayStringConcat(groupArray(name), ' ') FROM system.settings FORMAT TabSeparated";

/// For what is read: that nothing is cut short. Every supported release has them.
const COMPLETE: [(&str, &str); 25] = [
    ("limit", "0"),
    ("offset", "0"),
    ("max_result_rows", "0"),
    ("max_result_bytes", "0"),
    ("max_rows_to_read", "0"),
    ("max_bytes_to_read", "0"),
    ("result_overflow_mode", "throw"),
    ("read_overflow_mode", "throw"),
    ("extremes", "0"),
    ("max_columns_to_read", "0"),
    ("max_temporary_columns", "0"),
    ("max_temporary_non_const_columns", "0"),
    ("final", "0"),
    ("additional_table_filters", "{}"),
    ("additional_result_filter", ""),
    ("force_index_by_date", "0"),
    ("force_primary_key", "0"),
    ("output_format_tsv_crlf_end_of_line", "0"),
    ("group_by_overflow_mode", "throw"),
    ("sort_overflow_mode", "throw"),
    ("distinct_overflow_mode", "throw"),
    ("set_overflow_mode", "throw"),
    ("join_overflow_mode", "throw"),
    ("transfer_overflow_mode", "throw"),
    ("timeout_overflow_mode", "throw"),
];

/// For every statement: how long its text may be. Every supported release has them.
const LENGTH: [(&str, &str); 5] = [
    ("max_query_size", "262144"),
    ("max_parser_depth", "1000"),
    ("max_ast_depth", "1000"),
    ("max_ast_elements", "50000"),
    ("max_expanded_ast_elements", "500000"),
];

/// For every statement: how its text and its answer are framed, and that the answer is its own.
const TEXT: [(&str, &str); 7] = [
    ("dialect", "clickhouse"),
    ("format_binary_max_string_size", "1073741824"),
    ("format_binary_max_array_size", "1073741824"),
    ("http_write_exception_in_output_format", "0"),
    ("send_progress_in_http_headers", "0"),
    ("implicit_select", "0"),
    ("use_query_cache", "0"),
];

/// For what is read, where the release has them: other limits, what an expression means, and how the answer
/// is written.
const QUERY: [(&str, &str); 57] = [
    ("max_subquery_depth", "100"),
    ("max_rows_to_read_leaf", "0"),
    ("max_bytes_to_read_leaf", "0"),
    ("read_overflow_mode_leaf", "throw"),
    ("max_rows_to_group_by", "0"),
    ("max_rows_to_sort", "0"),
    ("max_bytes_to_sort", "0"),
    ("max_rows_in_distinct", "0"),
    ("max_bytes_in_distinct", "0"),
    ("max_rows_in_set", "0"),
    ("max_bytes_in_set", "0"),
    ("max_rows_in_join", "0"),
    ("max_bytes_in_join", "0"),
    ("max_rows_to_transfer", "0"),
    ("max_bytes_to_transfer", "0"),
    ("max_partitions_to_read", "-1"),
    ("timeout_overflow_mode_leaf", "throw"),
    ("max_execution_time_leaf", "0"),
    ("max_estimated_execution_time", "0"),
    ("min_execution_speed", "0"),
    ("min_execution_speed_bytes", "0"),
    ("max_execution_speed", "0"),
    ("max_execution_speed_bytes", "0"),
    ("partial_result_on_first_cancel", "0"),
    ("force_data_skipping_indices", ""),
    ("force_optimize_projection", "0"),
    ("force_optimize_projection_name", ""),
    ("enable_parallel_replicas", "0"),
    ("optimize_move_to_prewhere_if_final", "0"),
    ("use_skip_indexes_if_final_exact_mode", "1"),
    ("do_not_merge_across_partitions_select_final", "0"),
    ("aggregate_functions_null_for_empty", "0"),
    ("empty_result_for_aggregation_by_empty_set", "0"),
    ("transform_null_in", "0"),
    ("cast_keep_nullable", "0"),
    ("prefer_column_name_to_alias", "0"),
    ("session_timezone", ""),
    ("format_tsv_null_representation", "\\N"),
    ("output_format_json_array_of_rows", "0"),
    ("output_format_json_escape_forward_slashes", "1"),
    ("output_format_json_quote_64bit_integers", "0"),
    ("output_format_json_quote_denormals", "0"),
    ("output_format_json_validate_utf8", "0"),
    ("output_format_json_pretty_print", "0"),
    ("output_format_binary_encode_types_in_binary_format", "0"),
    ("output_format_binary_write_json_as_string", "0"),
    ("output_format_native_encode_types_in_binary_format", "0"),
    ("low_cardinality_allow_in_native_format", "1"),
    ("date_time_output_format", "simple"),
    ("output_format_decimal_trailing_zeros", "0"),
    ("bool_true_representation", "true"),
    ("bool_false_representation", "false"),
    ("show_table_uuid_in_table_create_query_if_not_nil", "0"),
    ("show_create_query_identifier_quoting_rule", "when_necessary"),
    ("show_create_query_identifier_quoting_style", "Backticks"),
    ("print_pretty_type_names", "0"),
    ("join_use_nulls", "0"),
];

/// For DDL: what it means, and that the answer comes when it is in force.
const DDL: [(&str, &str); 9] = [
    ("max_temporary_columns", "0"),
    ("max_temporary_non_const_columns", "0"),
    ("data_type_default_nullable", "0"),
    ("flatten_nested", "1"),
    ("distributed_ddl_output_mode", "throw"),
    ("alter_sync", "1"),
    ("mutations_sync", "0"),
    ("enable_json_type", "1"),
    ("allow_experimental_json_type", "1"),
];

/// For inserts: what the bytes mean, and that none of them is left out.
const INSERT: [(&str, &str); 12] = [
    ("input_format_allow_errors_num", "0"),
    ("input_format_allow_errors_ratio", "0"),
    ("input_format_defaults_for_omitted_fields", "1"),
    ("input_format_force_null_for_omitted_fields", "0"),
    ("input_format_skip_unknown_fields", "0"),
    ("input_format_import_nested_json", "0"),
    ("input_format_native_decode_types_in_binary_format", "0"),
    ("insert_allow_materialized_columns", "0"),
    ("insert_shard_id", "0"),
    ("throw_on_max_partitions_per_insert_block", "1"),
    ("min_execution_speed", "0"),
    ("min_execution_speed_bytes", "0"),
];

/// What is pinned for [`SERVER`].
pub(super) fn first() -> Vec<(&'static str, &'static str)> {
    [&LENGTH[..], &COMPLETE].concat()
}

/// What is pinned for a statement on a server that has these settings.
pub(super) fn pinned(kind: Kind, known: &HashSet<String>) -> Vec<(&'static str, &'static str)> {
    let (mut pinned, own): (_, &[(&str, &str)]) = match kind {
        Kind::Query => (first(), &QUERY),
        Kind::Ddl => (LENGTH.to_vec(), &DDL),
        Kind::Insert => (LENGTH.to_vec(), &INSERT),
    };
    pinned.extend(own.iter().chain(&TEXT).filter(|(name, _)| known.contains(*name)));
    pinned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_pinned_twice_or_unknown_to_a_release() {
        for kind in [Kind::Query, Kind::Ddl, Kind::Insert] {
            let all = [&QUERY[..], &DDL, &INSERT, &TEXT].concat();
            let known: HashSet<String> = all.iter().map(|(name, _)| (*name).to_owned()).collect();
            let names: Vec<&str> = pinned(kind, &known).into_iter().map(|(name, _)| name).collect();
            let once: HashSet<&str> = names.iter().copied().collect();
            assert_eq!(once.len(), names.len());
            assert!(pinned(kind, &HashSet::new()).len() <= first().len());
        }
    }
}
