// Every shader: its workgroup, and binding 0, the step's batch as tandem/devices/batch.py lays it out.
layout(constant_id = 0) const uint LANES = 64;
layout(local_size_x_id = 0) in;

layout(set = 0, binding = 0) readonly buffer Step { int step_data[]; };

uint batch_rows() { return uint(step_data[1]); }
uint batch_sequences() { return uint(step_data[2]); }
uint batch_samples() { return uint(step_data[3]); }
uint row_sequence(uint row) { return uint(step_data[step_data[4] + int(row) * step_data[5]]); }
uint row_position(uint row) { return uint(step_data[step_data[4] + int(row) * step_data[5] + 1]); }
uint row_token(uint row) { return uint(step_data[step_data[4] + int(row) * step_data[5] + 2]); }
// First row, number of rows.
uvec2 sequence_rows(uint sequence) {
    int at = step_data[6] + int(sequence) * step_data[7];
    return uvec2(step_data[at], step_data[at + 1]);
}
uint sample_row(uint index) { return uint(step_data[step_data[8] + int(index) * step_data[9]]); }
uint sample_slot(uint index) { return uint(step_data[step_data[8] + int(index) * step_data[9] + 1]); }
