// Integers below 2^22 in size become float32 by an addition, of which GPUs make more at once than conversions: the bits
// COUNTER + i are those of the float32 i above COUNTER's.
const int COUNTER = 0x4b400000;
float counted(int bits) {
    precise float value = intBitsToFloat(bits) - 12582912.0;
    return value;
}
