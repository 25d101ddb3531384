DROP TABLE servers;
DROP TABLE arrivals;
DROP TABLE moves;
